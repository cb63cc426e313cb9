"""Which numbers of a matrix may stay: how many, and among which they are ranked."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """Places of a matrix (N, C) that are kept.

    Raises:
        ValueError: for a sparsity outside [0, 1), an unknown name, or n:m without 1 <= n <= m.
    """

    name: str = "unstructured"
    """ "unstructured": the best of the matrix; "row": the best of each row; "n:m", such as "2:4": the best n of every m
    columns next to each other; "activations": all, of which a token reads a part."""
    sparsity: float = 0.5
    """Share of the numbers that go; of n:m it is 1 - n / m, whatever is said here."""

    def __post_init__(self):
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if self.name not in ("unstructured", "row", "activations"):
            n, m = self._group()
            if not 1 <= n <= m:
                raise ValueError(f"pattern n:m keeps n of m columns, 1 <= n <= m, got {self.name!r}")

    def count(self, rows: int, columns: int) -> int:
        """Numbers that are kept of a matrix.

        Raises:
            ValueError: for columns that are no multiple of m.
        """
        if self.name == "unstructured":
            return round(rows * columns * (1 - self.sparsity))
        if self.name == "row":
            return rows * round(columns * (1 - self.sparsity))
        n, m = self._group()
        if columns % m:
            raise ValueError(f"pattern {self.name!r} takes rows of a multiple of {m} columns, got {columns}")
        return rows * columns // m * n

    @property
    def even(self) -> bool:
        """Whether all rows keep equally many."""
        return self.name != "unstructured"

    def choose(self, score: Tensor) -> Tensor:
        """The places of the largest scores (N, C), bool; of equal ones the first."""
        rows, columns = score.shape
        if self.name == "unstructured":
            return _largest(score.flatten(), self.count(rows, columns)).view(rows, columns)
        if self.name == "row":
            return _largest(score, self.count(1, columns))
        n, m = self._group()
        return _largest(score.unflatten(1, (-1, m)), n).flatten(1)

    def nbytes(self, rows: int, columns: int, size: int) -> int:
        """Bytes of a matrix of values of ``size`` bytes: those, a bit a place with rows filled up to bytes, and where
        rows differ 4 bytes a row and 4 more for where they begin."""
        return self.count(rows, columns) * size + rows * -(-columns // 8) + (0 if self.even else 4 * (rows + 1))

    def _group(self) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+):(\d+)", self.name)
        if found is None:
            raise ValueError(f"pattern must be 'unstructured', 'row' or 'n:m' such as '2:4', got {self.name!r}")
        return int(found[1]), int(found[2])


def _largest(score: Tensor, count: int) -> Tensor:
    """The ``count`` largest along the last axis."""
    if count in (0, score.shape[-1]):
        return torch.full_like(score, count > 0, dtype=torch.bool)
    least = score.kthvalue(score.shape[-1] - count + 1, dim=-1, keepdim=True).values
    above, equal = score > least, score == least
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
