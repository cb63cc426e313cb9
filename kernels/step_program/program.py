"""A list of operations on up to four rows of floats, which ``step_program.c`` runs in one call.

A model of 24 layers spends more time on a step in a thousand calls of torch than it takes to read its weights. What a
step computes is the same every time: written down once, it is run without Python. Values are float32 whatever the
weights are, and those of a layer lie where those of the layer before did.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("step_program.c")
ROWS = 4  # most rows
ARGUMENTS = 22  # of a record of the C file
NORM, LINEAR, CONV, SSD, SCAN, TURN, ATTEND, GLU, SCALE = range(9)
CHUNK = 1 << 16  # bytes of a matrix that a thread takes at a time
CHANNELS = 64  # of a chunk of SCAN
DTYPES = (torch.float32, torch.bfloat16)


class Value(NamedTuple):
    """Columns of a tensor of rows: what an operation reads or has written.

    ``factor`` is yet to be multiplied with; ``made`` is the number of the linear layer that wrote it, if one did.
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


class Program:
    """Operations in the order in which they run.

    Args:
        rows: of all values, at most ``ROWS``.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self.records: list[list[int]] = []
        self.kept: list[Any] = []  # tensors whose memory the records point to
        self.sources: list[tuple[Tensor, int, int]] = []  # tensors read or copied, their versions and places
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
        wide = change(tensor.detach().float()).contiguous()
        self.kept.append(wide)
        return wide.data_ptr()

    def watch(self, tensor: Tensor) -> None:
        """The program is out of date when this tensor has changed."""
        self.sources.append((tensor, _version(tensor), tensor.data_ptr()))

    @property
    def is_current(self) -> bool:
        """Whether no tensor that it was made of was written to or moved since."""
        return all(_version(t) == version and t.data_ptr() == place for t, version, place in self.sources)

    def add(self, code: int, chunks: int, *arguments: int) -> int:
        """A record; returns its number."""
        self.records.append([code, chunks, *arguments, *[0] * (ARGUMENTS - len(arguments))])
        return len(self.records) - 1

    def norm(
        self, x: Value, weight: Tensor | None, eps: float, z: Value | None = None, groups: int = 1, heads: int = 1
    ) -> Value:
        """Root mean square over each of ``groups`` parts, or of as many ``heads`` as there are with the same weight."""
        x, y, width = self.whole(x), self.empty(x.width), x.width // heads
        rows = [(value.place[0], value.place[1] if heads == 1 else width) for value in (x, y)]
        if heads > 1 and x.place[1] != x.width:
            raise ValueError("heads lie one behind the other")
        gate = (0, 0) if z is None else z.place
        self.add(
            NORM, self.rows * heads, *rows[0], *rows[1], self.floats(weight), *gate, width, groups, _bits(eps)
        )  # fmt: skip
        return y

    def linear(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """x W^T + b of a matrix of numbers (N, C)."""
        self.watch(weight)
        if weight.dtype not in DTYPES or not weight.is_contiguous() or weight.shape[1] != x.width:
            raise ValueError(f"the matrix must be contiguous, of {DTYPES}, for {x.width} columns")
        brief = int(weight.dtype == torch.bfloat16)
        return self._matrix(x, len(weight), weight.nbytes, bias, weight.data_ptr(), brief)

    def lowbit(
        self, x: Value, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, bias: Tensor | None = None
    ) -> Value:
        """x W^T + b of a matrix in integers."""
        given = [codes, scale] if zero is None else [codes, scale, zero]
        for tensor in given:
            self.watch(tensor)
        if not all(t.is_contiguous() for t in given) or scale.dtype not in DTYPES:
            raise ValueError(f"codes and scales must be contiguous, the scales of {DTYPES}")
        zeros = 0 if zero is None else zero.data_ptr()
        brief = int(scale.dtype == torch.bfloat16)
        places = codes.data_ptr(), 2, bits, scale.shape[1], brief, scale.data_ptr(), zeros
        return self._matrix(x, len(codes), codes.nbytes, bias, *places)

    def _matrix(self, x: Value, outputs: int, size: int, bias: Tensor | None, *matrix: int) -> Value:
        y, rows = self.empty(outputs), max(1, CHUNK * outputs // max(size, 1))
        made = self.add(
            LINEAR, -(-outputs // rows), *x.place, *y.place, 0, 0, outputs, x.width, self.rows, _bits(x.factor),
            _bits(1.0), self.floats(bias), rows, *matrix,
        )  # fmt: skip
        return y._replace(made=made)

    def conv(self, x: Value, weight: Tensor, bias: Tensor | None, silu: bool) -> tuple[Value, int]:
        """A step of the convolution with taps (D, W); state, next and brief are arguments 6 to 8 of the record."""
        x, y, taps = self.whole(x), self.empty(x.width), weight.shape[-1]
        places = *x.place, *y.place, self.floats(weight, lambda t: t.reshape(-1, taps).mT), self.floats(bias)
        return y, self.add(CONV, self.rows, *places, 0, 0, 0, x.width, taps, int(silu))

    def ssd(
        self, x: Value, dt: Value, B: Value, C: Value, A_log: Tensor, dt_bias: Tensor, D: Tensor, limits, groups: int
    ) -> tuple[Value, int]:
        """A step of Mamba-2; state and next are arguments 11 and 12."""
        y, heads, head_dim = self.empty(x.width), len(A_log), x.width // len(A_log)
        self.kept.append(bounds := torch.tensor(limits, dtype=torch.float32))
        places = [*x.place, *dt.place, *B.place, *C.place, self.floats(A_log, lambda t: -t.exp()), self.floats(dt_bias)]
        places.append(self.floats(D, lambda t: t if t.dim() == 2 else t[:, None].expand(heads, head_dim)))
        sizes = heads, head_dim, B.width // groups, groups, 1
        return y, self.add(SSD, self.rows * heads, *places, 0, 0, *y.place, bounds.data_ptr(), *sizes)

    def scan(self, x: Value, dt: Value, B: Value, C: Value, z: Value, A_log: Tensor, D: Tensor) -> tuple[Value, int]:
        """A gated step of Mamba-1, softplus of dt included; state and next are arguments 12 and 13."""
        y, places = self.empty(x.width), [*x.place, *dt.place, *B.place, *C.place]
        places += [self.floats(A_log, lambda t: (-t.exp()).clamp(min=-3e30)), self.floats(D), *z.place]
        chunks = self.rows * -(-x.width // CHANNELS)
        return y, self.add(SCAN, chunks, *places, 0, 0, *y.place, x.width, B.width)

    def turn(self, q: Value, k: Value, v: Value, head_dim: int, rotary: tuple[Tensor, float, bool] | None) -> int:
        """Queries and keys turned where they are, keys and values kept in a cache; rotary: frequencies (P,), a scale
        and whether pairs are interleaved. Key, value, brief, capacity, slot and place are arguments 6 to 11."""
        frequency, scale, interleaved = (None, 1.0, False) if rotary is None else rotary
        angles = self.floats(frequency), 0 if frequency is None else len(frequency), _bits(scale), int(interleaved)
        heads = q.width // head_dim, k.width // head_dim
        places = *q.place, *k.place, *v.place
        return self.add(TURN, self.rows * sum(heads), *places, *[0] * 6, *angles, *heads, head_dim)

    def attend(self, q: Value, kv_heads: int, head_dim: int, scale: float) -> tuple[Value, int]:
        """Of queries over the slots of a cache; key and value are arguments 4 and 5, brief, capacity and filled 7 to 9,
        memory for (rows, H, capacity) numbers 11."""
        y, heads = self.empty(q.width), q.width // head_dim
        sizes = heads, kv_heads, head_dim
        return y, self.add(ATTEND, self.rows * heads, *q.place, *y.place, *[0] * 6, _bits(scale), 0, *sizes)

    def glu(self, gate: Value, up: Value) -> Value:
        """silu(gate) up."""
        gate, up, y = self.whole(gate), self.whole(up), self.empty(up.width)
        self.add(GLU, self.rows, *gate.place, *up.place, *y.place, up.width)
        return y

    def scaled(self, x: Value, weight: Tensor | None = None) -> Value:
        """x times its factor, and times a number a column."""
        y = self.empty(x.width)
        self.add(SCALE, self.rows, *x.place, *y.place, self.floats(weight), 0, 0, _bits(x.factor), x.width)
        return y

    def times(self, x: Value, factor: float) -> Value:
        """x times a number, of a value that nothing else reads."""
        if x.made is None or x.factor != 1:
            return x._replace(factor=x.factor * factor)
        self.records[x.made][12] = _bits(factor)
        return x._replace(made=None)

    def whole(self, x: Value) -> Value:
        """x without a factor."""
        return x if x.factor == 1 else self.scaled(x)

    def accumulate(self, total: Value, x: Value, first: bool = False) -> None:
        """total becomes total + x, or x where it is the ``first``: by the linear layer that made x just now, if any."""
        base = (0, 0) if first else total.place
        if x.made is not None and x.made == len(self.records) - 1:
            record = self.records[-1]
            record[4:6], record[6:8] = total.place, base
            record[12] = _bits(x.factor)
        else:
            self.add(SCALE, self.rows, *x.place, *total.place, 0, *base, _bits(x.factor), x.width)

    def finish(self) -> None:
        """No further operations."""
        self.memory = torch.tensor(self.records, dtype=torch.int64)
        self.progress = torch.empty(len(self.records), 8, dtype=torch.int64)
        self.arguments = self.memory.numpy()[:, 2:]

    def run(self) -> None:
        """All operations."""
        threads = torch.get_num_threads()
        native.call(SOURCE, "run_program", len(self.records), threads, self.memory, self.progress)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _bits(value: float) -> int:
    """Of a float32."""
    if not math.isfinite(value):
        raise ValueError(f"a factor must be finite, got {value}")
    return struct.unpack("<i", struct.pack("<f", value))[0]
