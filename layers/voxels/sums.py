"""Sums over the rows of a group, and products with what belongs to a row's group, without a matrix a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 4096  # whose matrices exist at a time


class _Sum(torch.autograd.Function):
    """S_g = sum of a_n b_n^T over the rows n of group g."""

    @staticmethod
    def forward(a, b, group, count):
        found = a.new_zeros(count, *a.shape[1:], b.shape[-1])
        for rows in _chunks(len(a)):
            found.index_add_(0, group[rows], a[rows, ..., None] * b[rows, ..., None, :])
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, arriving):  # type: ignore[override]
        a, b, group = ctx.saved_tensors
        return product(b, arriving.mT, group), product(a, arriving, group), None, None


class _Product(torch.autograd.Function):
    """y_n = a_n S_g of the group g of row n."""

    @staticmethod
    def forward(a, matrices, group):
        parts = [torch.matmul(a[rows, ..., None, :], matrices[group[rows]])[..., 0, :] for rows in _chunks(len(a))]
        return torch.cat(parts) if parts else a.new_zeros(0, *a.shape[1:-1], matrices.shape[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, arriving):  # type: ignore[override]
        a, matrices, group = ctx.saved_tensors
        return product(arriving, matrices.mT, group), sums(a, arriving, group, len(matrices)), None


def sums(a: Tensor, b: Tensor, group: Tensor, count: int) -> Tensor:
    """S_g, the sum of a_n b_n^T over the rows of group g.

    Args:
        a, b: (M, H, d), (M, H, e).
        group: (M,) int64, from 0 to count - 1.
        count: of groups.

    Returns:
        (count, H, d, e), zeros for a group without rows. Neither pass holds a matrix for each row.
    """
    return _Sum.apply(a, b, group, count)  # type: ignore[return-value]


def product(a: Tensor, matrices: Tensor, group: Tensor) -> Tensor:
    """y_n = a_n S_g, with the matrix of a row's group.

    Args:
        a: (M, H, d).
        matrices: S, (groups, H, d, e).
        group: (M,) int64.

    Returns:
        (M, H, e).
    """
    return _Product.apply(a, matrices, group)  # type: ignore[return-value]


def _chunks(rows: int) -> list[slice]:
    return [slice(first, min(first + ROWS, rows)) for first in range(0, rows, ROWS)]
