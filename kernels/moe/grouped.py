"""The grouped matrix product as one ``torch.mm`` for each expert that has rows, written where its rows lie."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.moe.reference import checked_bounds


def forward(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes."""
    bounds, dtype = checked_bounds(offsets, x.shape[0]), _operand_dtype(x, weight)
    x, output = _factor(x, dtype), x.new_empty(x.shape[0], weight.shape[2], dtype=dtype)
    weight = _laid_out(weight)
    for expert, (start, end) in zip(weight, bounds, strict=True):
        if end > start:
            torch.mm(x[start:end], _factor(expert, dtype), out=output[start:end])
    output[bounds[-1][1] :].zero_()
    return output


def backward(dy: Tensor, x: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; zero for rows without an expert and for experts without rows."""
    bounds, dtype = checked_bounds(offsets, x.shape[0]), _operand_dtype(x, weight)
    x, dy, weight = _factor(x, dtype), _factor(dy, dtype), _laid_out(weight)
    dx, dweight = x.new_empty(x.shape), x.new_empty(weight.shape)
    for expert, dexpert, (start, end) in zip(weight, dweight, bounds, strict=True):
        if end > start:
            torch.mm(dy[start:end], _factor(expert, dtype).mT, out=dx[start:end])
            torch.mm(x[start:end].mT, dy[start:end], out=dexpert)
        else:
            dexpert.zero_()
    dx[bounds[-1][1] :].zero_()
    return dx, dweight


def _operand_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Of the factors: their common dtype, in which sums are float32 anyway; few CPUs multiply in float16."""
    multiplies = x.dtype == weight.dtype and not (x.dtype == torch.float16 and x.device.type == "cpu")
    return x.dtype if multiplies else compute_dtype(x, weight)


def _factor(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    return _laid_out(matrix.to(dtype))


def _laid_out(matrices: Tensor) -> Tensor:
    """In rows or in columns, as they are; other strides are copied, all experts at once: the bits of a product may
    depend on where in a cache line a matrix begins."""
    return matrices if 1 in matrices.stride()[-2:] else matrices.contiguous()
