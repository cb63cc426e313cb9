"""How a matrix lies in memory, or several of one shape one behind the other, as ``step_program.c`` reads them."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.minifloat_matmul import numbers
from zoo.kernels.step_program.records import BY_INPUTS, DTYPES, Records, bits_of

ROWS, COLUMNS, INTEGERS, MINIFLOATS, SPARSE, KEPT = 0, 2, 4, 5, 6, 8  # of numbers: one more where they are bfloat16


class Matrix(NamedTuple):
    """(N, C), or (C, N) of layouts ``COLUMNS`` and ``KEPT``.

    Attributes:
        outputs: N.
        inputs: C.
        nbytes: of one matrix.
        layout: how it lies.
        places: of its numbers, codes or bits, as the records have them.
        strides: from one matrix of several, or from one row of a single one, to the next, in bytes: of numbers or
            codes, scales and zeros.
        kind: bits of exponent and of mantissa.
        rounded: bits of the integers that a row is rounded to before; 0 for none.
    """

    outputs: int
    inputs: int
    nbytes: int
    layout: int
    places: tuple[int, ...]
    strides: tuple[int, int, int] = (0, 0, 0)
    kind: tuple[int, int] = (0, 0)
    rounded: int = 0

    @property
    def by_inputs(self) -> bool:
        """Whether a row of it belongs to an input, and is read as it lies."""
        return self.layout in BY_INPUTS


def dense(p: Records, weight: Tensor) -> Matrix:
    """Of numbers (N, C), or of several (E, C, N), whose rows are the inputs and which may lie apart."""
    several = weight.dim() == 3
    _require(p, weight, weight[0] if several else weight, dtypes=DTYPES)
    brief, strides = int(weight.dtype == torch.bfloat16), (weight.stride(0) * weight.element_size(), 0, 0)
    if several:
        return Matrix(
            weight.shape[2], weight.shape[1], weight[0].nbytes, COLUMNS + brief, (weight.data_ptr(),), strides
        )
    return Matrix(len(weight), weight.shape[1], weight.nbytes, ROWS + brief, (weight.data_ptr(),), strides)


def integers(p: Records, shape: tuple[int, ...], codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int):
    """Of packed integers (..., N, C)."""
    _require(p, codes)
    _require(p, scale, dtypes=DTYPES)
    if zero is not None:
        _require(p, zero)
    places = codes.data_ptr(), bits, *_scales(scale), 0 if zero is None else zero.data_ptr()
    strides = codes[0].nbytes, scale[0].nbytes, 0 if zero is None else zero[0].nbytes
    return Matrix(shape[-2], shape[-1], _each(codes), INTEGERS, places, strides)


def minifloats(p: Records, shape: tuple[int, ...], codes: Tensor, scale: Tensor, kind: Minifloat) -> Matrix:
    """Of packed floating-point numbers (..., N, C) of up to 8 bits."""
    _require(p, codes)
    _require(p, scale, dtypes=DTYPES)
    table = p.pointer(F.pad(numbers(kind), (0, 256 - 2**kind.bits)).float())
    places, strides = (codes.data_ptr(), kind.bits, *_scales(scale), table), (codes[0].nbytes, scale[0].nbytes, 0)
    return Matrix(
        shape[-2], shape[-1], _each(codes), MINIFLOATS, places, strides, (kind.exponent_bits, kind.mantissa_bits)
    )  # fmt: skip


def sparse(p: Records, shape: tuple[int, ...], values: Tensor, mask: Tensor, start: Tensor | None) -> Matrix:
    """Of the numbers (K,) at the bits of a mask (N, bytes), or of several (E, K), as ``sparse_matmul`` has them."""
    _require(p, values, dtypes=DTYPES)
    _require(p, mask)
    if start is not None:
        _require(p, start, dtypes=(torch.int32,))
    count, brief = values.shape[-1], int(values.dtype == torch.bfloat16)
    places = values.data_ptr(), count, 0, 0, mask.data_ptr(), 0 if start is None else start.data_ptr()
    strides = values[0].nbytes, mask[0].nbytes, 0 if start is None else start[0].nbytes
    size = count * values.element_size() + _each(mask)
    return Matrix(shape[-2], shape[-1], size, SPARSE + brief, places, strides)


def kept(p: Records, columns: Tensor, norm: Tensor, threshold: float, right: Tensor, left: Tensor) -> Matrix:
    """Of columns (C, N) those of inputs whose size times a norm (C,) is above a threshold, and factors (C, r) and
    (r, N) for the others."""
    _require(p, columns, dtypes=(torch.float32,))
    places = p.floats(norm), bits_of(threshold), left.shape[0], p.floats(right), p.floats(left)
    return Matrix(columns.shape[1], columns.shape[0], columns.nbytes, KEPT, (columns.data_ptr(), *places))


def parts(matrix: Matrix, count: int, first: int, rows: int) -> Matrix:
    """So many rows from ``first`` on of each of ``count`` equal parts of a single matrix, as that many matrices.

    Raises:
        ValueError: for a layout whose rows do not all take the same memory.
    """
    if matrix.by_inputs or matrix.layout == KEPT or SPARSE <= matrix.layout < KEPT:
        raise ValueError(f"a matrix of layout {matrix.layout} has no parts")
    places = list(matrix.places)
    for place, stride in zip((0, 4, 5), matrix.strides, strict=True):
        if stride:
            places[place] += first * stride
    each = matrix.outputs // count
    strides = cast(tuple[int, int, int], tuple(each * stride for stride in matrix.strides))
    return matrix._replace(outputs=rows, nbytes=rows * matrix.strides[0], places=tuple(places), strides=strides)


def _scales(scale: Tensor) -> tuple[int, int, int]:
    return scale.shape[-1], int(scale.dtype == torch.bfloat16), scale.data_ptr()


def _each(codes: Tensor) -> int:
    return codes.shape[-2] * codes.shape[-1]


def _require(
    p: Records, tensor: Tensor, part: Tensor | None = None, *, dtypes: tuple[torch.dtype, ...] = (torch.uint8,)
) -> None:
    p.watch(tensor)
    if not (tensor if part is None else part).is_contiguous() or tensor.dtype not in dtypes:
        raise ValueError(f"a matrix must be contiguous, of {dtypes}, got {tensor.dtype}")
