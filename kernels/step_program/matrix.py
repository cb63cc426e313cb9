"""How a matrix lies in memory, or several of one shape one behind the other, as ``step_program.c`` reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.minifloat_matmul import numbers
from zoo.kernels.step_program.records import DTYPES, Records

ROWS, COLUMNS, INTEGERS, MINIFLOATS = 0, 2, 4, 5  # of numbers: one more where they are bfloat16


class Matrix(NamedTuple):
    """(N, C), or (C, N) of layout ``COLUMNS``.

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


def _scales(scale: Tensor) -> tuple[int, int, int]:
    return scale.shape[-1], int(scale.dtype == torch.bfloat16), scale.data_ptr()


def _each(codes: Tensor) -> int:
    return codes.shape[-2] * codes.shape[-1]


def _require(p: Records, tensor: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.uint8,)) -> None:
    p.watch(tensor)
    if not tensor.is_contiguous() or tensor.dtype not in dtypes:
        raise ValueError(f"a matrix must be contiguous, of {dtypes}, got {tensor.dtype}")
