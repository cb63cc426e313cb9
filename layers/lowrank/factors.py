"""A linear layer or a convolution as two: into a narrow space and out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.layers.lowrank.solvers import SOLVERS

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # no subclass: those have rules of their own
_INNER = ".to_rank.weight"


class LowRank(nn.Module):
    """y = U (V x) + b with U (out, r) and V (r, in), in place of a linear layer; of a convolution V has its kernel.

    The two are layers of their own, ``to_rank`` without a bias and ``from_rank``: r (in + out) numbers instead of in
    times out. Both start as new layers do; ``solve`` makes them stand for the layer.

    Args:
        layer: a nn.Linear, or a convolution without groups.
        rank: r.

    Raises:
        ValueError: for another layer, or a rank outside [1, full rank].

    Papers: Winata et al., "Lightweight and Efficient End-to-End Speech Recognition Using Low-Rank Transformer", arXiv
    1910.13923; Cahyawijaya, "Greenformers", arXiv 2108.10808.
    """

    def __init__(self, layer: nn.Module, rank: int):
        super().__init__()
        if not is_factorable(layer):
            raise ValueError(f"a low rank takes a linear layer or a convolution without groups, got {layer}")
        if not 1 <= rank <= min(sides(layer)):
            raise ValueError(f"rank must lie in [1, {min(sides(layer))}], the full rank of {layer}, got {rank}")
        self.rank = rank
        found: Any = layer
        bias, like = found.bias is not None, {"device": found.weight.device, "dtype": found.weight.dtype}
        if isinstance(layer, nn.Linear):
            self.to_rank: nn.Module = nn.Linear(layer.in_features, rank, bias=False, **like)
            self.from_rank: nn.Module = nn.Linear(rank, layer.out_features, bias, **like)
            return
        options = {name: getattr(found, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        self.to_rank = type(found)(found.in_channels, rank, found.kernel_size, bias=False, **options, **like)
        self.from_rank = type(found)(rank, found.out_channels, 1, bias=bias, **like)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer in whose place it stands."""
        return self.from_rank(self.to_rank(x))

    @torch.no_grad()
    def solve(self, layer: nn.Module, solver: str) -> None:
        """Factors for the weights of ``layer``, and its bias; nothing where it has no memory."""
        source, inner, outer = cast(Any, (layer, self.to_rank, self.from_rank))
        if source.weight.is_meta:
            return
        left, right = SOLVERS[solver](source.weight.flatten(1).double(), len(inner.weight))
        outer.weight.copy_(left.reshape(outer.weight.shape))
        inner.weight.copy_(right.reshape(inner.weight.shape))
        if source.bias is not None:
            outer.bias.copy_(source.bias)


def is_factorable(layer: nn.Module) -> bool:
    """Whether a ``LowRank`` may stand in its place."""
    return type(layer) in KINDS and getattr(layer, "groups", 1) == 1


def sides(layer: Any) -> tuple[int, int]:
    """Of the matrix that a layer stands for: (out, in), times the kernel of a convolution."""
    rows, columns = layer.weight.flatten(1).shape
    return rows, columns


def ranks_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name of a layer that tensors hold as factors -> its rank."""
    return {name.removesuffix(_INNER): len(tensor) for name, tensor in tensors.items() if name.endswith(_INNER)}


def ranks_in(model: nn.Module) -> dict[str, int]:
    """Name of a layer that is factors -> its rank."""
    return {name: module.rank for name, module in model.named_modules() if isinstance(module, LowRank)}


def replace(model: nn.Module, name: str, rank: int) -> LowRank:
    """Put new factors in place of the layer ``name``."""
    parent, _, child = name.rpartition(".")
    factors = LowRank(model.get_submodule(name), rank)
    setattr(model.get_submodule(parent), child, factors)
    return factors


def restored(build: Callable[[Any], nn.Module], ranks: Mapping[str, int]) -> Callable[[Any], nn.Module]:
    """``build`` with factors in place of some layers, as ``ranks_of`` found them in the tensors that are to fit.

    Raises (when built):
        ValueError: for factors of what the model does not have, or of a rank no product needs.
    """
    if not ranks:
        return build

    def built(config: Any) -> nn.Module:
        model = build(config)
        if missing := ranks.keys() - dict(model.named_modules()).keys():
            names = ", ".join(sorted(missing))
            raise ValueError(f"the checkpoint has factors of layers that the model has not: {names}")
        done = ranks_in(model)
        for name, rank in ranks.items():
            if done.get(name) != rank:
                replace(model, name, rank)
        return model

    return built
