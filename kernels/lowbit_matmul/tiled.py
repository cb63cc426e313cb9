"""The product with packed integers for any device: some rows of the matrix after another, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.lowbit_matmul import reference

TILE = 1 << 20  # numbers of the matrix that exist at a time


def forward(x, scale, codes, zero, bits, _, dequantise: Callable[..., Tensor] = reference.dequantise) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes."""
    x = x.to(compute_dtype(x, scale))
    output = x.new_empty(x.shape[0], len(codes))
    for rows, matrix in _tiles(x, scale, codes, zero, bits, dequantise):
        output[:, rows] = x @ matrix.mT
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
    size = max(1, TILE // x.shape[1])
    for start in range(0, len(codes), size):
        rows = slice(start, start + size)
        part = codes[rows], scale[rows], zero if zero is None else zero[rows]
        yield rows, dequantise(*part, bits=bits, columns=x.shape[1]).to(x.dtype)
