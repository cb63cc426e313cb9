"""The product with a sparse matrix as its definition: the matrix, then the product."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.sparse_matmul.bitmap import places


def forward(x: Tensor, values: Tensor, mask: Tensor, start: Tensor | None) -> Tensor:
    """x (M, C), values (K,), mask (N, bytes) -> (M, N), differentiable by autograd."""
    return x @ dense(values, mask, x.shape[1]).mT


def dense(values: Tensor, mask: Tensor, columns: int) -> Tensor:
    """The matrix (N, C) of values (K,) at the places of a mask (N, bytes), row after row."""
    kept = places(mask, columns)
    return values.new_zeros(kept.shape).masked_scatter(kept, values)
