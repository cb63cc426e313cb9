"""Checkpoints are read, never run: what is no tensor, number or text is refused before a trainer opens the file."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

_PICKLED = "torch.distributed.checkpoint"
_SHARD_TYPES = {  # what the index of a sharded checkpoint is made of
    *((f"{_PICKLED}.metadata", name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata")),
    *((f"{_PICKLED}.metadata", name) for name in ("MetadataIndex", "StorageMeta", "TensorProperties")),
    *((f"{_PICKLED}.metadata", name) for name in ("TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
    (f"{_PICKLED}.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its tensors memory-mapped; of a sharded one (a folder), all but the tensors.

    Raises:
        ValueError: for a file that is damaged, or holds anything besides tensors, numbers, text and containers of them:
            no code of it runs.
    """
    try:
        if path.is_dir():
            _check_shards(path)
            content = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (*_UNREADABLE, AttributeError) as error:
        lines = str(error).splitlines() or ["it is cut short"]
        reason = next((line.strip() for line in lines if "Unsupported" in line), lines[0])  # without torch's advice
        raise ValueError(
            f"{path} is no checkpoint of tensors and numbers alone: {reason}; nothing was loaded or run. Checkpoints "
            "of this library are; of another one, convert the weights to safetensors where you trust it"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint: it holds {type(content).__name__}, not a dictionary")
    return content


class _Index(pickle.Unpickler):
    """Reads the index of a sharded checkpoint, which torch unpickles without asking."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _SHARD_TYPES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"Unsupported global: {module}.{name}")


def _check_shards(path: Path) -> None:
    """The index, and the pickled numbers among the shards: torch reads both without a limit on what they may hold."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    for file in path.glob("*.metadata"):
        index = _Index(io.BytesIO(file.read_bytes())).load()
        for item, place in index.storage_data.items():
            name = str(place.relative_path)
            if Path(name).name != name or getattr(place, "transform_descriptors", None):
                raise ValueError(f"its index names {name!r}, which is no plain file in its folder")
            if isinstance(index.state_dict_metadata[item.fqn], BytesStorageMetadata):
                with (path / name).open("rb") as shard:
                    shard.seek(place.offset)
                    torch.load(io.BytesIO(shard.read(place.length)), weights_only=True)
