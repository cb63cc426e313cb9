"""The product with packed integers on the CPU in C (``lowbit_matmul.c``): few rows of x straight from the codes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.lowbit_matmul import tiled

SOURCE = Path(__file__).with_name("lowbit_matmul.c")
LANES = 16  # of the C file
FEW = 8  # rows of x: with more, torch's product with a part of the matrix takes less time


def forward(x, scale, codes, zero, bits, learns_scale) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes."""
    dtype = compute_dtype(x, scale)
    if x.shape[0] > FEW:
        factors = torch.bfloat16 if x.dtype == torch.bfloat16 and dtype == torch.float32 else dtype
        return tiled.product(x.to(factors), scale, codes, zero, bits, partial(dequantise, dtype=dtype))
    x, scale = x.to(dtype).contiguous(), _readable(scale, dtype)
    y, sums = x.new_empty(x.shape[0], len(codes)), x.new_empty(-(-scale.shape[1] // LANES) * LANES)
    sizes = _sizes(x.shape[1], scale, bits)
    native.call(SOURCE, "lowbit_rows", *sizes, x.shape[0], *_contiguous(codes, scale, zero), x, sums, y)
    return y


def backward(dy, x, scale, codes, zero, bits, learns_scale) -> tuple[Tensor, Tensor]:
    """Gradients of x and scale; that of the scale is zero where it is not learnt."""
    numbers = partial(dequantise, dtype=compute_dtype(x, scale))
    return tiled.backward(dy, x, scale, codes, zero, bits, learns_scale, numbers)


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, columns: int, dtype) -> Tensor:
    """The matrix (N, C) that codes stand for, in float32 or float64."""
    scale = _readable(scale, dtype)
    w = scale.new_empty(len(codes), columns, dtype=dtype)
    native.call(SOURCE, "lowbit_dequantise", *_sizes(columns, scale, bits), *_contiguous(codes, scale, zero), w)
    return w


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _readable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """In one of the dtypes that the C functions read: bfloat16 as it is."""
    return scale if scale.dtype == torch.bfloat16 else scale.to(dtype)


def _sizes(columns: int, scale: Tensor, bits: int) -> tuple[int, ...]:
    """What the C functions take first."""
    return len(scale), columns, bits, scale.shape[1], int(scale.dtype == torch.bfloat16), torch.get_num_threads()


def _contiguous(codes: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[Tensor | None, ...]:
    return codes.contiguous(), scale.contiguous(), zero if zero is None else zero.to(torch.uint8).contiguous()
