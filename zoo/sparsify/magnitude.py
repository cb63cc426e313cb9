"""Pruning by magnitude: the baseline."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from zoo.sparsify.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Magnitude(Method, name="magnitude"):
    r"""The score of a number is :math:`|w|`.

    Paper: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv 1506.02626.
    """

    def score(self, matrix: Tensor, known: Any) -> Tensor:
        """|w|."""
        return matrix.abs()
