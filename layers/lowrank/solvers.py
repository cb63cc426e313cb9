"""From a matrix (out, in) to factors (out, r) and (r, in) whose product stands in its place."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 200  # of the multiplicative updates


def svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest product of this rank (Eckart and Young, 1936); the singular values are in the second factor."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank, None] * right[:rank]


def random(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Fresh factors, each as nn.Linear's: uniform within 1 / sqrt(inputs)."""
    (rows, columns), wide = matrix.shape, matrix.new_empty
    return wide(rows, rank).uniform_(-(rank**-0.5), rank**-0.5), wide(rank, columns).uniform_(-1, 1) * columns**-0.5


def semi_nonnegative(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""X = F G with G >= 0 on the shorter side, F the least squares solution: weights have both signs.

    .. math::
        F = X G^\top (G G^\top)^{-1}, \quad
        G \leftarrow G \odot \sqrt{\frac{(F^\top X)^+ + (F^\top F)^- G}{(F^\top X)^- + (F^\top F)^+ G}}

    with :math:`a^\pm = (|a| \pm a) / 2`, from uniform numbers.

    Paper: Ding, Li and Jordan, "Convex and Semi-Nonnegative Matrix Factorizations", TPAMI 2010.
    """
    if matrix.shape[0] < matrix.shape[1]:
        free, positive = semi_nonnegative(matrix.mT, rank)
        return positive.mT, free.mT
    positive = torch.rand(rank, matrix.shape[1], dtype=matrix.dtype, device=matrix.device) + 0.2
    free = _least_squares(matrix, positive)
    for _ in range(STEPS):
        (up, down), (more, less) = _signs(free.mT @ matrix), _signs(free.mT @ free)
        positive = positive * ((up + less @ positive) / (down + more @ positive).clamp(min=1e-30)).sqrt()
        free = _least_squares(matrix, positive)
    return free, positive


def _least_squares(matrix: Tensor, positive: Tensor) -> Tensor:
    return torch.linalg.lstsq(
        positive.mT, matrix.mT, driver="gelsd" if matrix.device.type == "cpu" else None
    ).solution.mT


def _signs(a: Tensor) -> tuple[Tensor, Tensor]:
    return a.clamp(min=0), (-a).clamp(min=0)


SOLVERS = {"svd": svd, "random": random, "nmf": semi_nonnegative}
