"""Sums over groups of columns of products of integers, and their sum after each is scaled (MixPE)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EXACT = 2**24  # up to which float32 holds every integer
SUMS = 1 << 22  # integers that exist at a time


def group_sums(x: Tensor, q: Tensor, groups: int) -> Tensor:
    r"""The integers :math:`P_{mng} = \sum_{c \in g} q_{nc} x_{mc}`.

    Args:
        x: (M, C) integers of up to 9 bits with their sign.
        q: (N, C) integers of up to 8 bits.
        groups: G equal groups of columns.

    Returns:
        (M, N, G) int32, exact: products of matrices of floats that hold every partial sum.
    """
    size = x.shape[-1] // groups
    wide = torch.float32 if size * 255 * 255 < EXACT else torch.float64
    parts = (t.to(wide).unflatten(-1, (groups, size)).transpose(0, 1) for t in (x, q))
    left, right = parts
    return torch.bmm(left, right.mT).permute(1, 2, 0).to(torch.int32)


def scaled_sums(sums: Tensor, x: Tensor, x_scale: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    r"""A product from integer sums, of which each is scaled once.

    .. math::
        y_{mn} = s_m \sum_g s_{ng} \Big( P_{mng} - z_{ng} \sum_{c \in g} x_{mc} \Big)

    The sums of x are computed once for all outputs; what is scaled are N G numbers a token instead of N C weights.

    Args:
        sums: P (M, N, G) of ``group_sums``.
        x: (M, C) integers.
        x_scale: s_m (M, 1).
        scale: s_ng (N, G).
        zero: z (N, G) integers; None for 0.

    Returns:
        (M, N), of the dtype of x_scale.

    Paper: "MixPE: Quantization and Hardware Co-design for Efficient LLM Inference", arXiv 2411.16158, sections 3-4.
    """
    if zero is not None:
        totals = x.int().unflatten(-1, (sums.shape[-1], -1)).sum(-1, dtype=torch.int32)  # (M, G)
        sums = sums - zero.int() * totals[:, None]
    return torch.einsum("mng,ng->mn", sums.to(x_scale.dtype), scale.to(x_scale.dtype)) * x_scale


def scaled_products(
    x: Tensor, x_scale: Tensor, scale: Tensor, integers: Callable[[slice], Tensor], zero: Tensor | None = None
) -> Tensor:
    """``scaled_sums`` of ``group_sums`` with a matrix whose rows ``integers`` makes, some after another."""
    size = max(1, SUMS // max(1, len(x) * scale.shape[1]))
    found = []
    for start in range(0, len(scale), size):
        rows = slice(start, start + size)
        sums = group_sums(x, integers(rows), scale.shape[1])
        found.append(scaled_sums(sums, x, x_scale, scale[rows], None if zero is None else zero[rows]))
    return torch.cat(found, -1)
