"""The product with floating-point numbers of a few bits as its definition."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.lowbit_matmul import unpack


def forward(x: Tensor, codes: Tensor, scale: Tensor, kind: Minifloat) -> Tensor:
    """x (M, C), codes (N, bytes), scale (N, G) -> (M, N), differentiable by autograd."""
    wide = compute_dtype(x, scale)
    w = dequantise(codes, scale.to(wide), kind, columns=x.shape[-1])
    return (x.to(wide) @ w.mT).to(x.dtype)


def dequantise(codes: Tensor, scale: Tensor, kind: Minifloat, *, columns: int) -> Tensor:
    r"""The matrix that codes stand for: :math:`w = s \, \mathrm{value}(q)`, with a scale for each group of a row.

    Args:
        codes: (..., N, bytes) uint8, of ``lowbit_matmul.pack``; the highest bit is the sign.
        scale: (..., N, G).
        kind: what the other bits are.
        columns: C, of which a row has codes.

    Returns:
        (..., N, C) float32, or float64 of a float64 scale.
    """
    wide = compute_dtype(scale)
    values = numbers(kind).to(codes.device, wide)[unpack(codes, kind.bits, columns).long()]
    return (scale.to(wide)[..., None] * values.unflatten(-1, (scale.shape[-1], -1))).flatten(-2)


@cache
def numbers(kind: Minifloat) -> Tensor:
    """The value of every code, float64; codes behind the largest number are that number."""
    found = kind.numbers()
    found = torch.cat([found, found[-1:].expand(2 ** (kind.bits - 1) - len(found))])
    return torch.cat([found, -found])
