"""The product with packed integers for any device: some rows of the matrix after another, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.lowbit_matmul import reference

TILE, ROWS = 1 << 23, 64  # numbers of the matrix that exist at a time, of a multiple of so many rows


def forward(x, scale, codes, zero, bits, _, dequantise: Callable[..., Tensor] = reference.dequantise) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes."""
    return product(x.to(compute_dtype(x, scale)), scale, codes, zero, bits, dequantise)


def product(x, scale, codes, zero, bits, dequantise: Callable[..., Tensor]) -> Tensor:
    """Sums of products of x with the matrix in the dtype of x, which is also that of the result."""
    if len(codes) * x.shape[1] <= TILE:
        return F.linear(x, dequantise(codes, scale, zero, bits=bits, columns=x.shape[1]).to(x.dtype))
    output = x.new_empty(x.shape[0], len(codes))
    for rows, matrix in _tiles(x, scale, codes, zero, bits, dequantise):
        output[:, rows] = F.linear(x, matrix)
    return output


def backward(
    dy, x, scale, codes, zero, bits, learns_scale, dequantise: Callable[..., Tensor] = reference.dequantise
) -> tuple[Tensor, Tensor]:
    """Gradients of x and scale; that of the scale is zero where it is not learnt."""
    x = x.to(compute_dtype(x, scale))
    dy, dx, dscale = dy.to(x.dtype), torch.zeros_like(x), x.new_zeros(scale.shape)
    for rows, matrix in _tiles(x, scale, codes, zero, bits, dequantise):
        dx.addmm_(dy[:, rows], matrix)
        if learns_scale:
            steps = reference.dequantise(
                codes[rows], torch.ones_like(dscale[rows]), zero if zero is None else zero[rows],
                bits=bits, columns=x.shape[1],
            )  # fmt: skip
            slope = steps * (dy[:, rows].mT @ x)
            dscale[rows] = slope.unflatten(-1, (scale.shape[1], -1)).sum(-1)
    return dx, dscale


def _tiles(x, scale, codes, zero, bits, dequantise) -> Iterator[tuple[slice, Tensor]]:
    """Rows, and their part of the matrix in the dtype of x."""
    size = max(ROWS, TILE // x.shape[1] // ROWS * ROWS)
    for start in range(0, len(codes), size):
        rows = slice(start, start + size)
        part = codes[rows], scale[rows], zero if zero is None else zero[rows]
        yield rows, dequantise(*part, bits=bits, columns=x.shape[1]).to(x.dtype)
