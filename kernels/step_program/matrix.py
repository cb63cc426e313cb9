"""How a matrix lies in memory, or several of one shape one behind the other, as ``step_program.c`` reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.minifloat_matmul import numbers
from zoo.kernels.step_program.records import DTYPES, Records, bits_of

ROWS, COLUMNS, INTEGERS, MINIFLOATS, SPARSE, KEPT = 0, 2, 4, 5, 6, 8  # of numbers: one more where they are bfloat16


class Matrix(NamedTuple):
    """(N, C), or (C, N) of layouts ``COLUMNS`` and ``KEPT``.

    Attributes:
        outputs: N.
        inputs: C.
        nbytes: of one matrix.
        layout: how it lies.
        places: of its numbers, codes or bits, as the records have them.
        strides: from one matrix of several to the next, in bytes: of numbers or codes, scales and zeros.
        kind: bits of exponent and of mantissa.
    """

    outputs: int
    inputs: int
    nbytes: int
    layout: int
    places: tuple[int, ...]
    strides: tuple[int, int, int] = (0, 0, 0)
    kind: tuple[int, int] = (0, 0)


def dense(p: Records, weight: Tensor) -> Matrix:
    """Of numbers (N, C), or of several (E, C, N), whose rows are the inputs."""
    _require(p, weight, dtypes=DTYPES)
    brief, stride = int(weight.dtype == torch.bfloat16), weight[0].nbytes
    if weight.dim() == 2:
        return Matrix(len(weight), weight.shape[1], weight.nbytes, ROWS + brief, (weight.data_ptr(),))
    return Matrix(
        weight.shape[2], weight.shape[1], stride, COLUMNS + brief, (weight.data_ptr(),), (stride, 0, 0)
    )  # fmt: skip


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


def _scales(scale: Tensor) -> tuple[int, int, int]:
    return scale.shape[-1], int(scale.dtype == torch.bfloat16), scale.data_ptr()


def _each(codes: Tensor) -> int:
    return codes.shape[-2] * codes.shape[-1]


def _require(p: Records, tensor: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.uint8,)) -> None:
    p.watch(tensor)
    if not tensor.is_contiguous() or tensor.dtype not in dtypes:
        raise ValueError(f"a matrix must be contiguous, of {dtypes}, got {tensor.dtype}")
