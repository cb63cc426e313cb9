"""Checkpoint files: reading, writing, and fitting a state dict to the one a model expects."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SINGLE = (WEIGHTS, "pytorch_model.bin")
INDICES = tuple(f"{name}.index.json" for name in SINGLE)
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict")


def read_state_dict(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """Tensors of a checkpoint, on the CPU, memory-mapped: their bytes are read from the disk when they are used.

    ``path`` is a safetensors file, a PyTorch file (only tensors are unpickled; a wrapping "state_dict" or "model" is
    removed, and so is the "model." prefix of a Lightning checkpoint), or a folder with ``model.safetensors`` or
    ``pytorch_model.bin``, whole or in shards with an index. ``ema`` takes the averaged copy of a PyTorch file
    ("state_dict_ema", "model_ema", "ema") instead of the weights beside it; a file with nothing else gives it anyway.

    Raises:
        FileNotFoundError: when there is no such file, no weights in the folder, or a shard is missing.
        ValueError: when the file is damaged or no checkpoint, holds code, or its index leaves the folder.
    """
    path = Path(path)
    if path.is_dir():
        for name, index in zip(SINGLE, INDICES, strict=True):
            if (path / index).exists():
                return _read_shards(path / index, ema)
            if (path / name).exists():
                return _read_file(path / name, ema)
        raise FileNotFoundError(f"no weights in {path}: expected {', '.join((*SINGLE, *INDICES))}")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    return _read_file(path, ema)


def fit_state_dict(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], aliases: Mapping[str, str], source: str
) -> dict[str, Tensor]:
    """The tensors for exactly the keys of ``expected``.

    Args:
        state_dict: what the checkpoint holds. expected: what the model's ``state_dict()`` holds.
        aliases: keys of tied tensors -> the key they share their tensor with; one of the two is enough.
        source: name of the checkpoint, for the error.

    Raises:
        ValueError: listing the missing and unexpected keys, the mismatched shapes, and tied tensors that differ.
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
        "differing": differing,
    }
    if any(problems.values()):
        listed = "\n".join(f"  {kind} ({len(keys)}): {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"{source} does not fit the model; nothing was loaded\n{listed}")
    return fitted


def write_folder(folder: str | Path, state_dict: Mapping[str, Tensor], config: Mapping[str, Any], card: str) -> Path:
    """Write ``model.safetensors``, ``config.json`` and ``README.md``; each file appears whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to save into")
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in state_dict.items():
        tensor = plain(name, tensor).detach().cpu().contiguous()
        tensors[name] = tensor.clone() if tensor.data_ptr() in places else tensor  # a file has no shared tensors
        places.add(tensor.data_ptr())
    writers = {
        WEIGHTS: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        CONFIG: lambda path: Path(path).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"),
        "README.md": lambda path: Path(path).write_text(card, encoding="utf-8"),
    }
    for name, write in writers.items():
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            pass
        try:
            write(file.name)
            os.chmod(file.name, 0o644)
            os.replace(file.name, folder / name)
        except SafetensorError as error:
            raise OSError(f"{folder / name} cannot be written: {error}") from error
        finally:
            Path(file.name).unlink(missing_ok=True)
    return folder


def plain(name: str, tensor: Any) -> Tensor:
    """A tensor as a file holds it; a compressed one (torchao's, torch's quantised) as what it stands for.

    Raises:
        ValueError: naming it, for what is neither a plain tensor nor can be turned into one.
    """
    kind = type(tensor)
    if issubclass(kind, Tensor) and (tensor.is_quantized or kind.dequantize is not Tensor.dequantize):
        return tensor.dequantize()
    if kind not in (Tensor, torch.nn.Parameter):
        raise ValueError(
            f"{name} is a {kind.__name__}, a file holds plain tensors: save the model before it was compressed or "
            "sharded, or with the tensors gathered; a tensor class with a method dequantize() is saved as its result"
        )
    return tensor


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        FileNotFoundError: when there is none. ValueError: when it is not a JSON object.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: is it a folder written by save_model or save_pretrained?")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not text, not JSON, an endless number, or nested too deeply
        raise ValueError(f"{path} is not valid JSON: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}; fetch it again")
    return content


def _read_shards(index: Path, ema: bool) -> dict[str, Tensor]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(shard, str) for shard in names.values()):
        raise ValueError(f"{index} must hold a weight_map of tensor names to files; fetch it again")
    kind = Path(index.name.removesuffix(".index.json")).suffix
    shards = sorted(set(names.values()))
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard or "\0" in shard or not shard.endswith(kind):
            raise ValueError(
                f"{index} names {shard!r}, which is not a {kind} file in its own folder; nothing was loaded, and a "
                "checkpoint that asks for this should not be trusted"
            )
        if not (index.parent / shard).exists():
            raise FileNotFoundError(f"{index} names {shard}, which is not in the folder; fetch it as well")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= _read_file(index.parent / shard, ema)
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"{index} promises tensors that are in none of its files: {', '.join(missing)}")
    return tensors


def _read_file(path: Path, ema: bool) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _read_pickle(path, ema)
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


def _read_pickle(path: Path, ema: bool) -> dict[str, Tensor]:
    import pickle

    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or the pickle of old PyTorch versions
        raise ValueError(f"{path} is not a checkpoint: it is neither a safetensors nor a PyTorch file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        lines = str(error).splitlines() or ["it is cut short"]
        reason = next((line.strip() for line in lines if "Unsupported" in line), lines[0])  # without torch's advice
        raise ValueError(
            f"{path} is not a checkpoint of tensors alone: {reason}; nothing was loaded or run, convert it to "
            "safetensors where you trust it"
        ) from error
    lightning = isinstance(content, dict) and "pytorch-lightning_version" in content
    content = _chosen(content, ema, path)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict, but {type(content).__name__}")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if lightning:
        tensors = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    return tensors


def _chosen(content: Any, ema: bool, path: Path) -> Any:
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
