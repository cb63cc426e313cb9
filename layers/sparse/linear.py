"""A linear layer over a matrix without its zeros."""

from __future__ import annotations

from zoo.layers.linear import HeldLinear
from zoo.layers.sparse.matrix import SparseMatrix


class SparseLinear(HeldLinear):
    """y = x W^T + b with a sparse W: ``nn.Linear``'s place."""

    weight: SparseMatrix
