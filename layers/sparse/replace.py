"""Which weights of a model can be sparse, and sparse ones in their place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.sparse.linear import SparseLinear
from zoo.layers.sparse.matrix import SparseMatrix


def prunable(model: nn.Module) -> list[str]:
    """Names of the weights of linear layers and experts that no other layer shares.

    Layers that are more than a product, routers in float32 for one, are left, and so are embeddings, convolutions and
    what recurrences keep.
    """
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = []
    for prefix, module in model.named_modules():
        names = ("w1", "w3", "w2") if isinstance(module, RoutedExperts) else ("weight",)
        if isinstance(module, RoutedExperts) or type(module) is nn.Linear:
            weights = {name: getattr(module, name) for name in names}
            plain = [name for name, w in weights.items() if type(w) is nn.Parameter and owners[id(w)] == 1]
            found += [f"{prefix}.{name}" if prefix else name for name in plain]
    return found


def weights_of(model: nn.Module, name: str) -> Tensor:
    """The weight of that name as a matrix (N, C), or matrices (E, N, C) of experts, a row for each output."""
    prefix, _, attribute = name.rpartition(".")
    module = model.get_submodule(prefix)
    weight = getattr(module, attribute)
    return weight.mT if isinstance(module, RoutedExperts) else weight


def put(model: nn.Module, name: str, matrix: SparseMatrix) -> None:
    """Put a sparse matrix in the place of the weight of that name."""
    prefix, _, attribute = name.rpartition(".")
    module: Any = model.get_submodule(prefix)
    if isinstance(module, RoutedExperts):
        module.replace_matrices({attribute: matrix})
    else:
        model.set_submodule(prefix, SparseLinear(matrix, module.bias).train(module.training))
