"""Sparse matrices as a change of a model."""

from __future__ import annotations

import dataclasses

from torch import nn

from zoo.changes import Change
from zoo.layers.sparse import Pattern, SparseMatrix
from zoo.layers.sparse.replace import prunable, put, weights_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparse(Change, kind="sparse"):
    """Sparse matrices in the place of weights, for ``zoo.sparsify`` or a file to fill; without them they are 0."""

    names: tuple[str, ...] = ()
    """Of the weights."""
    pattern: str = "unstructured"
    """Places that have numbers: "unstructured", "row" or "n:m"."""
    sparsity: float = 0.5
    """Share of the places without."""

    def install(self, model: nn.Module) -> None:
        """Put them in place."""
        pattern, able = Pattern(self.pattern, self.sparsity), set(prunable(model))
        if not self.names:
            raise ValueError("a sparse model names its sparse weights: zoo.sparsify makes one of a dense model")
        if unknown := [name for name in self.names if name not in able]:
            raise ValueError(f"no weight that can be sparse: {unknown[0]!r}; see zoo.layers.sparse.prunable")
        weights = {name: weights_of(model, name) for name in self.names}
        made = {name: SparseMatrix(weight.shape, pattern, weight) for name, weight in weights.items()}
        for name, matrix in made.items():
            put(model, name, matrix)
