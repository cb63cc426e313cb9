"""What a program is made of: values, the memory that they lie in, and the records of operations that C reads."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("step_program.c")
ROWS = 4  # most rows
ARGUMENTS = 30  # of a record of the C file
LINEAR = 1  # the operation that others of its kind may run beside
CHUNK_ROWS, LAYOUT, INDEX = 14, 16, 22  # of its record: outputs (or inputs) of a chunk; which matrices were chosen
BY_INPUTS = 2, 3  # layouts of a matrix whose rows belong to inputs
BASE, FACTOR = slice(4, 8), 12  # of a record that writes, adds and multiplies: y and what is added to it; a factor
DTYPES = (torch.float32, torch.bfloat16)
_VERSION = operator.attrgetter("_version")


class Value(NamedTuple):
    """Columns of a tensor of rows: what an operation reads or has written.

    ``factor`` is yet to be multiplied with; ``made`` is the number of the record that wrote it, if that can also
    multiply and add.
    """

    tensor: Tensor
    factor: float = 1.0
    made: int | None = None

    @property
    def width(self) -> int:
        return self.tensor.shape[1]

    @property
    def place(self) -> tuple[int, int]:
        """Pointer and distance of the rows."""
        return self.tensor.data_ptr(), self.tensor.stride(0)

    def split(self, *widths: int) -> list[Value]:
        """Parts of the columns."""
        return [Value(part, self.factor) for part in self.tensor.split(widths, dim=1)]


class Records:
    """Operations in the order in which they run.

    Args:
        rows: of all values, at most ``ROWS``.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self.records: list[list[int]] = []
        self.kept: list[Any] = []  # tensors whose memory the records point to
        self.sources: dict[int, Tensor] = {}  # tensors read or copied
        self.scratch: list[Tensor] = []
        self.used = 0
        self.memory, self.progress = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)

    def again(self) -> None:
        """From here on the memory of earlier values may be used again."""
        self.used = 0

    def empty(self, width: int) -> Value:
        """Memory for a value, used by nobody else until ``again``."""
        for index in range(self.used, len(self.scratch)):
            if self.scratch[index].shape[1] == width:
                found = self.scratch.pop(index)
                break
        else:
            found = torch.zeros(self.rows, width)
        self.scratch.insert(self.used, found)
        self.used += 1
        self.kept.append(found)
        return Value(found)

    def floats(self, tensor: Tensor | None, change: Callable[[Tensor], Tensor] = lambda t: t) -> int:
        """Pointer to the numbers of a parameter, changed, in float32; 0 for None."""
        if tensor is None:
            return 0
        self.watch(tensor)
        return self.pointer(change(tensor.detach().float()).contiguous())

    def pointer(self, tensor: Tensor) -> int:
        """To a tensor that is kept as long as the program."""
        self.kept.append(tensor)
        return tensor.data_ptr()

    def watch(self, tensor: Tensor) -> None:
        """The program is out of date when this tensor has changed."""
        self.sources[id(tensor)] = tensor

    @property
    def is_current(self) -> bool:
        """Whether no tensor that it was made of was written to or moved since."""
        return self.written == self._seen()

    def _seen(self) -> tuple[int, ...]:
        """Versions and places of what it was made of."""
        return *map(_VERSION, self.versioned), *map(Tensor.data_ptr, self.sources.values())

    def add(self, code: int, chunks: int, *arguments: int) -> int:
        """A record of at least one chunk; returns its number."""
        if chunks < 1:
            raise ValueError(f"an operation has at least one chunk, got {chunks}")
        self.records.append([code, chunks, *arguments, *[0] * (ARGUMENTS - len(arguments))])
        return len(self.records) - 1

    def finish(self) -> None:
        """No further operations."""
        joined = beside(self.records, self.rows)
        self.memory = torch.tensor([[*r, int(j)] for r, j in zip(self.records, joined, strict=True)], dtype=torch.int64)
        self.progress = torch.empty(8, len(self.records), dtype=torch.int64)
        self.arguments = self.memory.numpy()[:, 2:]
        self.versioned = [tensor for tensor in self.sources.values() if not tensor.is_inference()]
        self.written = self._seen()

    def run(self, start: int = 0, stop: int | None = None) -> None:
        """The operations from ``start`` up to ``stop``, or to the end."""
        threads, records = torch.get_num_threads(), self.memory[start:stop]
        native.call(SOURCE, "run_program", len(records), threads, records, self.progress)


def beside(records: Sequence[Sequence[int]], rows: int) -> list[bool]:
    """Whether each record may run beside the one before, and beside those that this one may run beside: a product that
    neither reads what they write nor writes what they read or write."""
    found: list[bool] = []
    group: list[_Touched] = []
    for record in records:
        touched = _touched(record, rows)
        joins = bool(group) and touched is not None and not any(touched.meets(other) for other in group)
        group = [*(group if joins else []), *([] if touched is None else [touched])]
        found.append(joins)
    return found


class _Touched(NamedTuple):
    """Stretches of memory (first byte, byte behind the last) that a product reads, and that it writes."""

    read: list[tuple[int, int]]
    written: list[tuple[int, int]]

    def meets(self, other: _Touched) -> bool:
        """Whether the order of the two matters."""
        return _overlap(self.written, other.written + other.read) or _overlap(self.read, other.written)


def _overlap(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)


def _touched(record: Sequence[int], rows: int) -> _Touched | None:
    """None for anything but a product."""
    code, chunks, x, x_row, y, y_row, base, base_row, outputs, inputs = record[:10]
    if code != LINEAR:
        return None
    slots, share, sums = rows, 1, rows
    if record[INDEX]:  # of a matrix that each slot has chosen
        by_inputs = record[LAYOUT] in BY_INPUTS
        slots, share = chunks // -(-(inputs if by_inputs else outputs) // record[CHUNK_ROWS]), record[INDEX + 1]
        sums = chunks if by_inputs else slots

    def stretch(place: int, apart: int, width: int, count: int) -> tuple[int, int]:
        return place, place + 4 * ((count - 1) * apart + width)

    read = [stretch(x, x_row, inputs, slots // share)]
    if base:
        read.append(stretch(base, base_row, outputs, slots))
    return _Touched(read, [stretch(y, y_row, outputs, sums)])


def bits_of(value: float) -> int:
    """Of a float32."""
    if not math.isfinite(value):
        raise ValueError(f"a factor must be finite, got {value}")
    return struct.unpack("<i", struct.pack("<f", value))[0]
