"""A list of operations on up to four rows of floats, which ``step_program.c`` runs in one call.

A model of 24 layers spends more time on a step in a thousand calls of torch than it takes to read its weights. What a
step computes is the same every time: written down once, it is run without Python. Values are float32 whatever the
weights are, and those of a layer lie where those of the layer before did.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.step_program.matrix import COLUMNS, INTEGERS, KEPT, Matrix
from zoo.kernels.step_program.records import BASE, FACTOR, SOURCE, Records, Value, bits_of

NORM, LINEAR, CONV, SSD, SCAN, TURN, ATTEND, GLU, SCALE, ROUTE, COMBINE, DIGITS = range(12)
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "sigmoid", "squared_relu", "clamped", "capped", "none")
CHUNK = 1 << 16  # bytes of a matrix that a thread takes at a time
SEGMENT = 1 << 10  # bytes of a row of a matrix whose rows are inputs
CHANNELS = 64  # of a chunk of SCAN
WIDE = 4096  # columns of a chunk of GLU
UNIT = 32  # columns that share a step of digits


class Chosen(NamedTuple):
    """The ``count`` matrices that each row goes through, of several: pointers to their numbers and weights."""

    count: int
    index: Tensor  # (rows, count) int64
    weight: Tensor  # (rows, count) float32


class Program(Records):
    """The operations."""

    def __init__(self, rows: int):
        super().__init__(rows)
        self.digits: dict[tuple, tuple[int, int]] = {}  # of values, until their memory is written to

    def again(self) -> None:
        """From here on the memory of earlier values may be used again."""
        super().again()
        self.digits.clear()

    def norm(
        self,
        x: Value,
        weight: Tensor | None,
        eps: float,
        z: Value | None = None,
        groups: int = 1,
        heads: int = 1,
        change: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> Value:
        """Root mean square over each of ``groups`` parts, or of as many ``heads`` as there are with the same weight."""
        x, y, width = self.whole(x), self.empty(x.width), x.width // heads
        rows = [(value.place[0], value.place[1] if heads == 1 else width) for value in (x, y)]
        if heads > 1 and x.place[1] != x.width:
            raise ValueError("heads lie one behind the other")
        gate = (0, 0) if z is None else z.place
        made = self.add(
            NORM, self.rows * heads, *rows[0], *rows[1], 0, 0, self.floats(weight, change), *gate, width, bits_of(1.0),
            groups, bits_of(eps),
        )  # fmt: skip
        return y._replace(made=made if heads == 1 and z is None else None)

    def linear(self, x: Value, matrix: Matrix, bias: Tensor | None = None) -> Value:
        """x W^T + b."""
        if matrix.inputs != x.width:
            raise ValueError(f"the matrix is for {matrix.inputs} columns, got {x.width}")
        y, rows, digits = self.empty(matrix.outputs), _rows_at_a_time(matrix), self._digits(*x.place, self.rows, matrix)
        made = self._matrix(x.place, y.place, x.factor, matrix, bias, -(-matrix.outputs // rows), rows, self.rows)
        self.records[made][29:31] = digits
        return y._replace(made=made)

    def linear_of(self, x: Value, matrix: Matrix, bias: Tensor | None, chosen: Chosen) -> Value:
        """x W_e^T + b_e of the matrices e that each row has chosen, beside each other: (rows, count N).

        x is one row for all of them, or (rows, count C).
        """
        apart = x.width != matrix.inputs
        if x.width not in (matrix.inputs, chosen.count * matrix.inputs):
            raise ValueError(f"the matrices are for {matrix.inputs} columns, got {x.width}")
        if apart and x.place[1] != x.width:
            raise ValueError("what goes through several matrices lies one behind the other")
        y, rows, slots = self.empty(chosen.count * matrix.outputs), _rows_at_a_time(matrix), self.rows * chosen.count
        given, chunks = (x.place[0], matrix.inputs if apart else x.place[1]), slots * -(-matrix.outputs // rows)
        digits = self._digits(*given, slots if apart else self.rows, matrix)
        made = self._matrix(given, (y.place[0], matrix.outputs), x.factor, matrix, bias, chunks, rows, 1)
        self.records[made][22:24] = chosen.index.data_ptr(), 1 if apart else chosen.count
        self.records[made][29:31] = digits
        return y

    def _digits(self, x: int, apart: int, rows: int, matrix: Matrix) -> tuple[int, int]:
        """Pointer and distance in bytes of the rows of x, so many numbers apart, as digits; 0 where there are none."""
        columns = matrix.inputs
        if matrix.layout != INTEGERS or columns // matrix.places[2] % UNIT or not has_digits():
            return 0, 0
        key = x, apart, rows, columns, matrix.places[2]
        if key not in self.digits:
            size = -(-_digit_bytes(columns, matrix.places[2]) // 64) * 64
            place = self.pointer(torch.empty(rows, size, dtype=torch.uint8))
            self.add(DIGITS, rows, x, apart, place, size, columns, matrix.places[2])
            self.digits[key] = place, size
        return self.digits[key]

    def _matrix(self, x, y, factor: float, matrix: Matrix, bias: Tensor | None, chunks: int, rows: int, M: int) -> int:
        places = (*matrix.places, *[0] * (6 - len(matrix.places)))
        return self.add(
            LINEAR, chunks, *x, *y, 0, 0, matrix.outputs, matrix.inputs, M, bits_of(factor), bits_of(1.0),
            self.floats(bias), rows, places[0], matrix.layout, *places[1:], 0, 0, *matrix.strides, *matrix.kind,
        )  # fmt: skip

    def route(
        self, logits: Value, top_k: int, *, score: str, normalize: bool, scale: float = 1.0, bias: Tensor | None = None,
        num_groups: int = 1, top_groups: int = 1, group_top: int = 2,
    ) -> Chosen:  # fmt: skip
        """The experts of each row and their weights, as ``top_k_routing`` has them."""
        logits = self.whole(logits)
        index, weight = torch.zeros(self.rows, top_k, dtype=torch.int64), torch.zeros(self.rows, top_k)
        scratch = self.empty(4 * logits.width)
        sizes = logits.width, top_k, int(score == "sigmoid"), int(normalize), bits_of(scale)
        groups = (num_groups, top_groups, group_top) if top_groups < num_groups else (1, 1, 1)
        places = *logits.place, self.floats(bias), self.pointer(index), self.pointer(weight), *scratch.place
        self.add(ROUTE, self.rows, *places, *sizes, *groups)
        return Chosen(top_k, index, weight)

    def combine(self, x: Value, chosen: Chosen) -> Value:
        """The weighted sum of what each row has from its matrices, (rows, count N) -> (rows, N)."""
        width = x.width // chosen.count
        y, places = self.empty(width), (x.place[0], chosen.count)
        made = self.add(
            COMBINE, self.rows, *places, *y.place, 0, 0, chosen.weight.data_ptr(), 0, 0, width, bits_of(1.0)
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
        bounds = self.pointer(torch.tensor(limits, dtype=torch.float32))
        places = [*x.place, *dt.place, *B.place, *C.place, self.floats(A_log, lambda t: -t.exp()), self.floats(dt_bias)]
        places.append(self.floats(D, lambda t: t if t.dim() == 2 else t[:, None].expand(heads, head_dim)))
        sizes = heads, head_dim, B.width // groups, groups, 1
        return y, self.add(SSD, self.rows * heads, *places, 0, 0, *y.place, bounds, *sizes)

    def scan(self, x: Value, dt: Value, B: Value, C: Value, z: Value, A_log: Tensor, D: Tensor) -> tuple[Value, int]:
        """A gated step of Mamba-1, softplus of dt included; state and next are arguments 12 and 13."""
        y, places = self.empty(x.width), [*x.place, *dt.place, *B.place, *C.place]
        places += [self.floats(A_log, lambda t: (-t.exp()).clamp(min=-3e30)), self.floats(D), *z.place]
        chunks = self.rows * -(-x.width // CHANNELS)
        return y, self.add(SCAN, chunks, *places, 0, 0, *y.place, x.width, B.width)

    def turn(self, q: Value, k: Value, v: Value, head_dim: int, rotary: tuple[Tensor, float, bool] | None) -> int:
        """Queries and keys turned where they are, keys and values kept in a cache; rotary: frequencies (P,), a scale
        and whether pairs are interleaved. Key, value, brief, capacity, slot and place are arguments 6 to 11; 19 says
        that all slots are taken, and the oldest is given up."""
        frequency, scale, interleaved = (None, 1.0, False) if rotary is None else rotary
        angles = self.floats(frequency), 0 if frequency is None else len(frequency), bits_of(scale), int(interleaved)
        heads = q.width // head_dim, k.width // head_dim
        places = *q.place, *k.place, *v.place
        return self.add(TURN, self.rows * sum(heads), *places, *[0] * 6, *angles, *heads, head_dim)

    def attend(
        self, q: Value, kv_heads: int, head_dim: int, scale: float, softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> tuple[Value, int]:  # fmt: skip
        """Of queries over the slots of a cache; key and value are arguments 4 and 5, brief, capacity and filled 7 to 9,
        memory for (rows, H, capacity) numbers 11."""
        y, heads = self.empty(q.width), q.width // head_dim
        sizes = heads, kv_heads, head_dim, bits_of(softcap or 0.0), self.floats(sinks)
        return y, self.add(ATTEND, self.rows * heads, *q.place, *y.place, *[0] * 6, bits_of(scale), 0, *sizes)

    def glu(
        self, gate: Value, up: Value | None, activation: str = "silu", alpha: float = 1.0, limit: float = 0.0
    ) -> Value:
        """An activation of the gate, times ``up`` where there is one."""
        gate, y = self.whole(gate), self.empty(gate.width)
        others = (0, 0) if up is None else self.whole(up).place
        kind = ACTIVATIONS.index(activation), bits_of(alpha), bits_of(limit)
        chunks = self.rows * -(-gate.width // WIDE)
        self.add(GLU, chunks, *gate.place, *others, *y.place, gate.width, *kind, WIDE)
        return y

    def capped(self, x: Value, cap: float) -> Value:
        """c tanh(x / c)."""
        return self.glu(x, None, "capped", cap)

    def scaled(self, x: Value, weight: Tensor | None = None) -> Value:
        """x times its factor, and times a number a column."""
        y = self.empty(x.width)
        self.add(SCALE, self.rows, *x.place, *y.place, self.floats(weight), 0, 0, bits_of(x.factor), x.width)
        return y

    def times(self, x: Value, factor: float) -> Value:
        """x times a number, of a value that nothing else reads."""
        if x.made is None or x.factor != 1:
            return x._replace(factor=x.factor * factor)
        self.records[x.made][FACTOR] = bits_of(factor)
        return x._replace(made=None)

    def whole(self, x: Value) -> Value:
        """x without a factor."""
        return x if x.factor == 1 else self.scaled(x)

    def accumulate(self, total: Value, x: Value, first: bool = False) -> None:
        """total becomes total + x, or x where it is the ``first``: by the record that made x just now, if any."""
        base = (0, 0) if first else total.place
        self.digits.clear()
        if x.made is not None and x.made == len(self.records) - 1:
            record = self.records[-1]
            record[BASE] = *total.place, *base
            record[FACTOR] = bits_of(x.factor)
        else:
            self.add(SCALE, self.rows, *x.place, *total.place, 0, *base, bits_of(x.factor), x.width)


def _digit_bytes(columns: int, groups: int) -> int:
    """Of a row in the layout of digits.h."""
    whole = -(-columns // 128) * 128
    return 3 * whole + 4 * (whole // UNIT + -(-groups // 16) * 16)


@cache
def has_digits() -> bool:
    """Whether this processor multiplies codes by digits."""
    found = torch.zeros(1, dtype=torch.int64)
    native.call(SOURCE, "has_digits", found)
    return bool(found)


def _rows_at_a_time(matrix: Matrix) -> int:
    """Outputs of a chunk."""
    if COLUMNS <= matrix.layout < INTEGERS:
        return SEGMENT // (4 >> (matrix.layout - COLUMNS))
    if matrix.layout == KEPT:
        return SEGMENT // 4
    return max(1, CHUNK * matrix.outputs // max(matrix.nbytes, 1))
