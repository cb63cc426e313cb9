"""The product with packed integers as its definition: the matrix that they stand for, then the product."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.lowbit_matmul.packing import unpack


def forward(x: Tensor, scale: Tensor, codes: Tensor, zero: Tensor | None, bits: int, _: bool) -> Tensor:
    """x (M, C), scale (N, G), codes (N, bytes), zero (N, G) or None -> (M, N), differentiable by autograd."""
    return x @ dequantise(codes, scale, zero, bits=bits, columns=x.shape[-1]).mT


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, bits: int, columns: int) -> Tensor:
    """See ``op.dequantise``: its definition."""
    wide, groups = compute_dtype(scale), (scale.shape[-1], -1 if columns else 0)
    q = unpack(codes, bits, columns).unflatten(-1, groups).to(wide)
    z: Any = 2 ** (bits - 1) if zero is None else zero.to(wide)[..., None]
    return (scale.to(wide)[..., None] * (q - z)).flatten(-2)
