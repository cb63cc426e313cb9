"""Checkpoint files: reading, and fitting a state dict to the one a model expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.json_files import read_json
from zoo.checkpoints.pickles import read_pickle

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SINGLE = (WEIGHTS, "pytorch_model.bin")
INDICES = tuple(f"{name}.index.json" for name in SINGLE)
PREVIOUS = ".previous"  # the model before, while a save over it has not ended


def read_state_dict(path: str | Path, ema: bool | None = None) -> dict[str, Tensor]:
    """Tensors of a checkpoint, on the CPU, memory-mapped: their bytes are read from the disk when they are used.

    Args:
        path: a safetensors file, a PyTorch file (see ``checkpoints.pickles``), or a folder with ``model.safetensors``
            or ``pytorch_model.bin``, whole or, where there is none, in shards with an index.
        ema: of a PyTorch file, True takes the averaged copy ("state_dict_ema", "model_ema", "ema", or that of a
            Lightning checkpoint of this library) and False the trained weights beside it; None takes the former of a
            Lightning checkpoint, as evaluation and export do, and the latter of others.

    Raises:
        FileNotFoundError: when there is no such file, no weights in the folder, or a shard is missing.
        ValueError: when the file is damaged or no checkpoint, holds code, or its index leaves the folder.
    """
    path = Path(path)
    if path.is_dir():
        path = whole(path)
        for name, index in zip(SINGLE, INDICES, strict=True):
            listed = _listed(path / index) if (path / index).exists() else {}
            if (path / name).exists() and name not in listed.values():  # an index is an earlier save's
                return _read_file(path / name, ema)
            if listed:
                return _read_shards(path / index, listed, ema)
        raise FileNotFoundError(f"no weights in {path}: expected {', '.join((*SINGLE, *INDICES))}")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    return _read_file(path, ema)


def fit_state_dict(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], aliases: Mapping[str, str], source: str
) -> dict[str, Tensor]:
    """The tensors for exactly the keys of ``expected``.

    Args:
        state_dict: what the checkpoint holds.
        expected: what the model's ``state_dict()`` holds.
        aliases: keys of tied tensors -> the key they share their tensor with; one of the two is enough.
        source: name of the checkpoint, for the error.

    Raises:
        ValueError: listing the missing and unexpected keys, the mismatched shapes, tensors of another kind of number
            (integers are no weights, complex numbers no real ones), and tied tensors that differ.
    """
    fitted = dict(state_dict)
    differing = []
    for alias, target in aliases.items():
        if alias in fitted and target in fitted and not torch.equal(fitted[alias], fitted[target]):
            differing.append(f"{alias} and {target} are tied in the model but differ in the checkpoint")
        if alias in fitted or target in fitted:
            fitted[alias] = fitted[target] = fitted.get(target, fitted.get(alias))  # type: ignore[assignment]
    problems = {
        "missing": [key for key in expected if key not in fitted],
        "unexpected": [key for key in fitted if key not in expected],
        "mismatched": [
            f"{key}: checkpoint {tuple(fitted[key].shape)}, model {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in fitted and fitted[key].shape != tensor.shape
        ],
        "of another kind": [
            f"{key}: checkpoint {str(fitted[key].dtype)[6:]}, model {str(tensor.dtype)[6:]}"
            for key, tensor in expected.items()
            if key in fitted and not _is_of_kind(fitted[key], tensor)
        ],
        "differing": differing,
    }
    if any(problems.values()):
        listed = "\n".join(f"  {kind} ({len(keys)}): {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"{source} does not fit the model; nothing was loaded\n{listed}")
    return fitted


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        FileNotFoundError: when there is none. ValueError: when it is not a JSON object.
    """
    path = whole(Path(folder)) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: is it a folder written by save_model or save_pretrained?")
    return read_json(path)


def whole(folder: Path) -> Path:
    """Where a folder's model is: in it, or in what a save over it kept of the one before and did not end."""
    previous = folder / PREVIOUS
    return previous if (previous / CONFIG).exists() and not (folder / CONFIG).exists() else folder


def _is_of_kind(tensor: Tensor, expected: Tensor) -> bool:
    """Floating, complex or integer as the model's; a counter may have been stored as a whole floating number."""
    kinds = [(t.is_floating_point(), t.is_complex(), t.dtype is torch.bool) for t in (tensor, expected)]
    counter = kinds == [(True, False, False), (False, False, False)] and expected.dim() == 0
    return kinds[0] == kinds[1] or (counter and tensor.dim() == 0 and float(tensor).is_integer())


def _listed(index: Path) -> dict[str, str]:
    """Name of a tensor -> its file, all of them in the index's own folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(shard, str) for shard in names.values()):
        raise ValueError(f"{index} must hold a weight_map of tensor names to files; fetch it again")
    kind = Path(index.name.removesuffix(".index.json")).suffix
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard or "\\" in shard or "\0" in shard or not shard.endswith(kind):
            raise ValueError(
                f"{index} names {shard!r}, which is not a {kind} file in its own folder; nothing was loaded, and a "
                "checkpoint that asks for this should not be trusted"
            )
        if not (index.parent / shard).exists():
            raise FileNotFoundError(f"{index} names {shard}, which is not in the folder; fetch it as well")
    return names


def _read_shards(index: Path, listed: Mapping[str, str], ema: bool | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(listed.values())):
        held = _read_file(index.parent / shard, ema)
        if twice := tensors.keys() & held.keys():
            raise ValueError(
                f"{index.parent / shard} holds {', '.join(sorted(twice))}, which another shard holds too: they are not "
                "of one checkpoint; fetch them again"
            )
        tensors |= held
    if missing := [name for name in listed if name not in tensors]:
        raise ValueError(f"{index} promises tensors that are in none of its files: {', '.join(missing)}")
    return tensors


def _read_file(path: Path, ema: bool | None) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_pickle(path, ema)
    if ema:
        raise ValueError(f"{path} holds one set of weights: leave out ema, or give the PyTorch file it was made from")
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError, OSError) as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({path.stat().st_size:,} bytes): {error}; nothing was loaded, "
            "fetch it again"
        ) from error
