"""The product with packed integers for any device: some rows of the matrix after another, as numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.kernels.common.tiles import tiled_product, tiles
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.lowbit_matmul import reference


def forward(x, scale, codes, zero, bits, _, dequantise: Callable[..., Tensor] = reference.dequantise) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes."""
    return product(x.to(compute_dtype(x, scale)), scale, codes, zero, bits, dequantise)


def product(x, scale, codes, zero, bits, dequantise: Callable[..., Tensor]) -> Tensor:
    """Sums of products of x with the matrix in the dtype of x, which is also that of the result."""
    return tiled_product(x, len(codes), lambda rows: _numbers(rows, x, scale, codes, zero, bits, dequantise))


def backward(
    dy, x, scale, codes, zero, bits, learns_scale, dequantise: Callable[..., Tensor] = reference.dequantise
) -> tuple[Tensor, Tensor]:
    """Gradients of x and scale; that of the scale is zero where it is not learnt."""
    x = x.to(compute_dtype(x, scale))
    dy, dx, dscale = dy.to(x.dtype), torch.zeros_like(x), x.new_zeros(scale.shape)
    for rows in tiles(len(codes), x.shape[1]):
        dx.addmm_(dy[:, rows], _numbers(rows, x, scale, codes, zero, bits, dequantise))
        if learns_scale:
            steps = reference.dequantise(
                codes[rows], torch.ones_like(dscale[rows]), zero if zero is None else zero[rows],
                bits=bits, columns=x.shape[1],
            )  # fmt: skip
            slope = steps * (dy[:, rows].mT @ x)
            dscale[rows] = slope.unflatten(-1, (scale.shape[1], -1)).sum(-1)
    return dx, dscale


def _numbers(rows, x, scale, codes, zero, bits, dequantise) -> Tensor:
    """Those rows of the matrix, in the dtype of x."""
    part = codes[rows], scale[rows], zero if zero is None else zero[rows]
    return dequantise(*part, bits=bits, columns=x.shape[1]).to(x.dtype)
