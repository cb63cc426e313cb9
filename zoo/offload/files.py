"""Where the bytes of tensors lie in files, and how they are read into memory that is there already."""

from __future__ import annotations

import json
import struct
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from zoo.checkpoints.io import CONFIG, INDICES, WEIGHTS
from zoo.checkpoints.json_files import read_json

ALIGNED = 64  # bytes: kernels may sum in another order where memory is not
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class File:
    """A file that is read at places, by any thread.

    Args:
        source: a path, or an open file.
    """

    def __init__(self, source: Path | IO[bytes]):
        self.file: Any = open(source, "rb", buffering=0) if isinstance(source, Path) else source  # noqa: SIM115
        self.lock = threading.Lock()
        weakref.finalize(self, self.file.close)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes from ``offset`` on.

        Raises:
            OSError: where the file ends before.
        """
        with self.lock:
            self.file.seek(offset)
            done = 0
            while done < len(into):
                count = self.file.readinto(into[done:])
                if not count:
                    raise OSError(f"{self.file.name} ends {len(into) - done} bytes too early: was it replaced?")
                done += count


class Piece(NamedTuple):
    """A tensor in a file."""

    file: File
    offset: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def room(self) -> int:
        """Bytes that it takes in a slot."""
        return room_of(self.nbytes)

    def __getitem__(self, index: int) -> Piece:  # type: ignore[override]
        """One of the tensors along the first dimension."""
        part = self._replace(shape=self.shape[1:])
        return part._replace(offset=self.offset + index * part.nbytes)

    def rows(self, first: int, into: Tensor) -> None:
        """Fill ``into`` (n, ...) with the tensors along the first dimension, from one on."""
        offset = self.offset + first * self.shape[1:].numel() * self.dtype.itemsize
        self.file.read(offset, _bytes_of(into.view(-1).view(torch.uint8)))

    def read(self, into: Tensor) -> Tensor:
        """The tensor, in memory (room,) uint8 of one's own."""
        held = into[: self.nbytes]
        self.file.read(self.offset, _bytes_of(held))
        return held.view(self.dtype).view(self.shape)


def room_of(nbytes: int) -> int:
    """Bytes that so many take where the next begins at a place of its own."""
    return -(-nbytes // ALIGNED) * ALIGNED


def listed(folder: Path) -> dict[str, Piece]:
    """The tensors of a folder of safetensors files by name; nothing but their headers is read."""
    files = {WEIGHTS}
    index = folder / INDICES[0]
    if not (folder / WEIGHTS).exists() and index.exists():
        files = set(read_json(index)["weight_map"].values())
    found: dict[str, Piece] = {}
    for name in sorted(files):
        path = folder / name
        if path.exists():
            found |= _pieces(path)
    return found


def _pieces(path: Path) -> dict[str, Piece]:
    file = File(path)
    with open(path, "rb") as head:
        (length,) = struct.unpack("<Q", head.read(8))
        header: Mapping[str, Any] = json.loads(head.read(length))
    return {
        name: Piece(file, 8 + length + entry["data_offsets"][0], torch.Size(entry["shape"]), DTYPES[entry["dtype"]])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] in DTYPES
    }


def spilled(tensors: Iterable[tuple[str, Tensor]], folder: Path | None = None) -> dict[str, Piece]:
    """Tensors written one after the other to a file without a name, which is gone with the last piece of it."""
    file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
    held, found, offset = File(file), {}, 0
    for name, tensor in tensors:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        file.write(_bytes_of(plain.view(-1).view(torch.uint8)))
        found[name] = Piece(held, offset, plain.shape, plain.dtype)
        offset += plain.nbytes
    return found


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.numpy())  # pyright: ignore[reportArgumentType]


def is_saved(folder: Path) -> bool:
    """Whether there may be a model."""
    return (folder / CONFIG).exists()
