"""PyTorch files: read for their tensors, never run.

torch's own reader of weights alone is used, with a few types allowed besides its own that training scripts leave in
their files and that only hold values: options (argparse.Namespace), numpy's numbers and arrays, paths, defaultdict.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import struct
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict")
_LIGHTNING, _TRAINED, _AVERAGE = "pytorch-lightning_version", "model.", "average."
_VALUES = "?bhilqBHILQefdgFDGUSMm"  # numpy's codes of numbers, text and dates; objects are not among them
_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
SPREAD = 1 << 28  # bytes that a tensor may show over fewer: one number in every place of it
_lock = threading.Lock()


def read_pickle(path: Path, ema: bool | None = None) -> dict[str, Tensor]:
    """The tensors of a state dict in a PyTorch file, memory-mapped where its format allows it.

    A wrapping "state_dict" or "model" is removed. Of a Lightning checkpoint of this library the averaged model is
    taken where there is one, as in evaluation and export; of another file only where it is asked for.

    Args:
        path: the file.
        ema: True takes the averaged copy, False the weights that were trained; None as said above. A file with an
            averaged copy alone gives it anyway.

    Raises:
        ValueError: for a file that is damaged, holds code or no state dict, or no averaged copy where it must.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or the pickle of old PyTorch versions
        raise ValueError(f"{path} is not a checkpoint: it is neither a safetensors nor a PyTorch file")
    try:
        with _values_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK")
    except _DAMAGED as error:
        lines = str(error).splitlines() or ["it is cut short"]
        words = ("Unsupported", "Can only", "Trying to")  # what torch says of a file, without its advice
        reason = next((line.strip() for line in lines if any(word in line for word in words)), lines[0])
        reason = reason.split(". Please use")[0]
        raise ValueError(
            f"{path} is not a checkpoint of tensors alone: {reason}; nothing was loaded or run, convert it to "
            "safetensors where you trust it"
        ) from error
    lightning = isinstance(content, dict) and _LIGHTNING in content
    content = _unwrapped(content if lightning else _chosen(content, ema, path))
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict, but {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    _check_stored(tensors, path)
    return _of_lightning(tensors, ema, path) if lightning else tensors


def _of_lightning(tensors: Mapping[str, Tensor], ema: bool | None, path: Path) -> dict[str, Tensor]:
    averaged = any(name.startswith(_AVERAGE) for name in tensors)
    if ema and not averaged:
        raise ValueError(f"{path} holds no averaged weights: its model was trained without ema; leave out ema")
    prefix = _AVERAGE if averaged and ema is not False else _TRAINED
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _chosen(content: Any, ema: bool | None, path: Path) -> Any:
    """The averaged weights where they are asked for, or where a file has nothing else."""
    if not isinstance(content, dict):
        return content
    average = next((content[name] for name in _AVERAGES if isinstance(content.get(name), dict)), None)
    if ema and average is None:
        raise ValueError(f"{path} holds no averaged weights ({', '.join(_AVERAGES)}); leave out ema")
    plain = any(isinstance(content.get(name), dict) for name in _WRAPPERS) or any(
        isinstance(value, Tensor) for value in content.values()
    )
    return average if average is not None and (ema or not plain) else content


def _unwrapped(content: Any) -> Any:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return content


def _check_stored(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Tensors are plain, and a file holds about as many numbers as they show: one number is no table of a billion."""
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"{path}: {name} is no plain tensor, but {type(tensor).__name__} of {tensor.layout}")
        if tensor.nbytes > max(tensor.untyped_storage().nbytes(), SPREAD):
            raise ValueError(f"{path}: {name} has shape {tuple(tensor.shape)}, but the file holds fewer numbers of it")


@contextmanager
def _values_allowed() -> Iterator[None]:
    """torch's list of allowed types is the process's: one reader at a time changes it."""
    with _lock, torch.serialization.safe_globals(_values()):
        yield


def _dictionary(*factory: Any) -> dict[Any, Any]:
    """What a defaultdict becomes: torch fills plain dictionaries alone."""
    return {}


def _values() -> list[Any]:
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    paths = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    return [
        argparse.Namespace,
        types.SimpleNamespace,
        (_dictionary, "collections.defaultdict"),
        *(bool, int, float, str, list, dict, tuple),  # what makes a defaultdict's values
        *((pathlib.PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in paths),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in _VALUES},
    ]
