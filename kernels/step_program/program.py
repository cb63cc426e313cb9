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
from zoo.kernels.step_program.matrix import INTEGERS, KEPT, Matrix
from zoo.kernels.step_program.records import BASE, FACTOR, INDEX, LINEAR, SOURCE, Records, Value, bits_of

NORM, _, CONV, SSD, SCAN, TURN, ATTEND, GLU, SCALE, ROUTE, COMBINE, DIGITS, PICK, BLEND = range(14)
ROUND = 24
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "sigmoid", "squared_relu", "clamped", "capped", "none")
CHUNK = 1 << 15  # bytes of a matrix that a thread takes at a time
SEGMENT = 256  # outputs of a chunk of kept columns
PARTS = 8  # most chunks of a matrix whose rows are inputs, each of which has sums of its own
CHANNELS = 64  # of a chunk of SCAN
TAPPED = 512  # columns of a chunk of CONV
TOGETHER = 4  # most heads of a chunk of ATTEND
WIDE = 4096  # columns of a chunk of GLU
UNIT = 32  # columns that share a step of digits
DIGITS_OF = slice(29, 32)  # of a record of a product


class Chosen(NamedTuple):
    """The ``count`` matrices that each row goes through, of several: pointers to their numbers and weights."""

    count: int
    index: Tensor  # (rows, count) int64
    weight: Tensor  # (rows, count) float32


class Program(Records):
    """The operations."""

    def __init__(self, rows: int):
        super().__init__(rows)
        self.digits: dict[tuple, tuple[int, int, int]] = {}  # of values, until their memory is written to
        self.integers: dict[tuple, Value] = {}

    def again(self) -> None:
        """From here on the memory of earlier values may be used again."""
        super().again()
        self._written()

    def _written(self) -> None:
        """Of no value is known what it is in digits or integers."""
        self.digits.clear()
        self.integers.clear()

    def norm(
        self,
        x: Value,
        weight: Tensor | None,
        eps: float,
        z: Value | None = None,
        groups: int = 1,
        heads: int = 1,
        change: Callable[[Tensor], Tensor] = lambda t: t,
        factor: float = 1.0,
        bias: Tensor | None = None,
        centred: bool = False,
    ) -> Value:
        """x over its root mean square, of what is left without the mean where ``centred``, in each of ``groups`` parts,
        or in as many ``heads`` as there are with the same weight; times a ``factor`` and plus a bias."""
        x, y, width = self.whole(x), self.empty(x.width), x.width // heads
        rows = [(value.place[0], value.place[1] if heads == 1 else width) for value in (x, y)]
        if heads > 1 and x.place[1] != x.width:
            raise ValueError("heads lie one behind the other")
        gate = (0, 0) if z is None else z.place
        made = self.add(
            NORM, self.rows * heads, *rows[0], *rows[1], 0, 0, self.floats(weight, change), *gate, width,
            bits_of(factor), groups, bits_of(eps), self.floats(bias), int(centred),
        )  # fmt: skip
        return y._replace(made=made if heads == 1 and z is None and factor == 1 else None)

    def unit(self, x: Value, width: int, eps: float) -> Value:
        """Each part of so many columns over its length, with eps added to the sum of squares."""
        return self.norm(x, None, eps / width, heads=x.width // width, factor=width**-0.5)

    def linear(self, x: Value, matrix: Matrix, bias: Tensor | None = None) -> Value:
        """x W^T + b."""
        if matrix.inputs != x.width:
            raise ValueError(f"the matrix is for {matrix.inputs} columns, got {x.width}")
        x = self._rounded(x, matrix, 1)
        y, rows, digits = self.empty(matrix.outputs), _rows_at_a_time(matrix), self._digits(*x.place, self.rows, matrix)
        made = self._matrix(x.place, y.place, x.factor, matrix, bias, -(-matrix.outputs // rows), rows, self.rows)
        self.records[made][DIGITS_OF] = digits
        return y._replace(made=made)

    def linear_of(self, x: Value, matrix: Matrix, bias: Tensor | None, chosen: Chosen) -> Value:
        """x W_e^T + b_e of the matrices e that each row has chosen, beside each other: (rows, count N).

        x is one row for all of them, or (rows, count) parts, whose first C columns go through a matrix.
        """
        apart, each = x.width != matrix.inputs, x.width // chosen.count
        if apart and (x.width % chosen.count or each < matrix.inputs):
            raise ValueError(f"the matrices are for {matrix.inputs} columns, got {x.width}")
        if apart and x.place[1] != x.width:
            raise ValueError("what goes through several matrices lies one behind the other")
        x = self._rounded(x, matrix, chosen.count if apart else 1)
        rows, slots, outputs = _rows_at_a_time(matrix), self.rows * chosen.count, chosen.count * matrix.outputs
        pieces = -(-(matrix.inputs if matrix.by_inputs else matrix.outputs) // rows)
        y = self.empty(outputs * (pieces if matrix.by_inputs else 1))
        given, chunks = (x.place[0], each if apart else x.place[1]), slots * pieces
        digits = self._digits(*given, slots if apart else self.rows, matrix)
        made = self._matrix(given, (y.place[0], matrix.outputs), x.factor, matrix, bias, chunks, rows, 1)
        self.records[made][INDEX : INDEX + 2] = chosen.index.data_ptr(), 1 if apart else chosen.count
        self.records[made][DIGITS_OF] = digits
        if y.width == outputs:
            return y
        total, places = self.empty(outputs), (y.place[0], pieces)
        self.add(COMBINE, slots, *places, total.place[0], matrix.outputs, *[0] * 5, matrix.outputs, bits_of(1.0))
        return total

    def every(self, count: int) -> Chosen:
        """Each of so many matrices, for each row."""
        index = torch.arange(count).repeat(self.rows, 1)
        self.kept.append(index)
        return Chosen(count, index, torch.empty(0))

    def _rounded(self, x: Value, matrix: Matrix, parts: int) -> Value:
        """x, where the matrix wants that with each part as integers times a number, those of ``quantised_rows``: its
        digits are such integers themselves."""
        if not matrix.rounded or _takes_digits(matrix):
            return x
        key = *x.place, x.width, matrix.rounded, parts
        if key not in self.integers:
            width = x.width // parts
            y, apart = self.empty(x.width), x.place[1] if parts == 1 else width
            places = x.place[0], apart, y.place[0], width
            self.add(ROUND, self.rows * parts, *places, width, 2 ** (matrix.rounded - 1) - 1)
            self.integers[key] = y
        return self.integers[key]._replace(factor=x.factor)

    def _digits(self, x: int, apart: int, rows: int, matrix: Matrix) -> tuple[int, int, int]:
        """Pointer and distance in bytes of the rows of x, so many numbers apart, as digits, and whether these are one
        a number; 0 where there are none."""
        if not _takes_digits(matrix):
            return 0, 0, 0
        columns, groups, top = matrix.inputs, matrix.places[2], 2 ** (matrix.rounded - 1) - 1 if matrix.rounded else 0
        key = x, apart, rows, columns, groups, top
        if key not in self.digits:
            size = -(-_digit_bytes(columns, groups) // 64) * 64
            place = self.pointer(torch.empty(rows, size, dtype=torch.uint8))
            self.add(DIGITS, rows, x, apart, place, size, columns, groups, top)
            self.digits[key] = place, size, min(top, 1)
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
        chunks = self.rows * -(-x.width // TAPPED)
        return y, self.add(CONV, chunks, *places, 0, 0, 0, x.width, taps, int(silu), TAPPED)

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

    def turn(
        self, q: Value, k: Value, v: Value, head_dim: int, rotary: tuple[Tensor, float, bool] | None,
        heads: int | None = None,
    ) -> int:  # fmt: skip
        """Queries and keys turned where they are, keys and values kept in a cache.

        Key, value, brief, capacity, slot and place are arguments 6 to 11; 19 says that all slots are taken, and the
        oldest is given up.

        Args:
            rotary: frequencies (P,), a scale and whether pairs are interleaved.
            heads: of queries that lie apart: parts of a whole row, of which ``q`` is where the first one turns.
        """
        count, keys = heads or q.width // head_dim, k.width // head_dim
        apart = q.place[1] // heads if heads else head_dim
        places, sizes = (*q.place, *k.place, *v.place), (count, keys, head_dim, 0, apart, v.width // keys)
        return self.add(TURN, self.rows * (count + keys), *places, *[0] * 6, *self.angles(rotary), *sizes)

    def angles(self, rotary: tuple[Tensor, float, bool] | None) -> tuple[int, int, int, int]:
        """How a record has them."""
        frequency, scale, interleaved = (None, 1.0, False) if rotary is None else rotary
        return self.floats(frequency), 0 if frequency is None else len(frequency), bits_of(scale), int(interleaved)

    def attend(
        self, q: Value, kv_heads: int, head_dim: int, scale: float, softcap: float | None = None,
        sinks: Tensor | None = None, latent: Value | None = None, heads: int | None = None,
    ) -> tuple[Value, int]:  # fmt: skip
        """Of queries over the slots of a cache; key and value are arguments 4 and 5, brief, capacity and filled 7 to 9,
        memory for (rows, H, capacity) numbers 11.

        Args:
            latent: queries for the values, which are keys too; the output is as wide.
            heads: as in ``turn``.
        """
        y, count = self.empty((q if latent is None else latent).width), heads or q.width // head_dim
        sizes = count, kv_heads, head_dim, bits_of(softcap or 0.0), self.floats(sinks), y.width // count
        further = q.place[1] // heads if heads else head_dim, *((0, 0) if latent is None else latent.place)
        places = *q.place, *y.place, *[0] * 6, bits_of(scale), 0
        together = max(n for n in range(1, TOGETHER + 1) if count // kv_heads % n == 0)
        return y, self.add(ATTEND, self.rows * count // together, *places, *sizes, *further, together)

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

    def scaled(self, x: Value, weight: Tensor | None = None, by: Value | None = None) -> Value:
        """x times its factor, and times a number a column, and one a row, ``by`` (rows, 1)."""
        y, own = self.empty(x.width), (0, 0) if by is None else by.place
        self.add(SCALE, self.rows, *x.place, *y.place, self.floats(weight), 0, 0, bits_of(x.factor), x.width, *own)
        return y

    def pick(self, x: Value, *columns: Tensor) -> list[Value]:
        """Some columns of x by their numbers, others behind them, and so on."""
        index = torch.cat([part.flatten() for part in columns])
        y = self.empty(len(index))
        self.add(PICK, self.rows, *self.whole(x).place, *y.place, self.pointer(index), len(index))
        return y.split(*(part.numel() for part in columns))

    def blend(self, x: Value, z: Value, share: Value) -> Value:
        """x + share (z - x)."""
        y = self.empty(x.width)
        self.add(BLEND, self.rows, *x.place, *z.place, *share.place, *y.place, x.width)
        return y

    def parameter(self, tensor: Tensor) -> Value:
        """Its numbers, the same in each row."""
        self.watch(tensor)
        numbers = tensor.detach().float().flatten().expand(self.rows, -1)
        self.kept.append(numbers)
        return Value(numbers)

    def times(self, x: Value, factor: float) -> Value:
        """x times a number, of a value that nothing else reads."""
        if x.made is None or x.factor != 1:
            return x._replace(factor=x.factor * factor)
        self.records[x.made][FACTOR] = bits_of(factor)
        return x._replace(made=None)

    def whole(self, x: Value) -> Value:
        """x without a factor."""
        return x if x.factor == 1 else self.scaled(x)

    def lasting(self, x: Value) -> Value:
        """A copy, whose memory nothing else uses."""
        y = Value(torch.zeros(self.rows, x.width))
        self.kept.append(y.tensor)
        self.accumulate(y, x._replace(made=None), first=True)
        return y

    def accumulate(self, total: Value, x: Value, first: bool = False) -> None:
        """total becomes total + x, or x where it is the ``first``: by the record that made x just now, if any."""
        base = (0, 0) if first else total.place
        self._written()
        if x.made is not None and x.made == len(self.records) - 1:
            record = self.records[-1]
            record[BASE] = *total.place, *base
            record[FACTOR] = bits_of(x.factor)
        else:
            self.add(SCALE, self.rows, *x.place, *total.place, 0, *base, bits_of(x.factor), x.width)


def _takes_digits(matrix: Matrix) -> bool:
    return matrix.layout == INTEGERS and matrix.inputs // matrix.places[2] % UNIT == 0 and has_digits()


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
    """Outputs of a chunk, or inputs."""
    if matrix.by_inputs:
        return -(-matrix.inputs // min(PARTS, -(-matrix.nbytes // CHUNK)))
    if matrix.layout == KEPT:
        return SEGMENT
    return max(1, CHUNK * matrix.outputs // max(matrix.nbytes, 1))
