"""Sparse plus low-rank matrices in place of a model's linear layers, to train from the start in less memory."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

from torch import nn

from zoo.changes import Change, apply, changes_of
from zoo.factorize import replaceable
from zoo.layers.lowrank import SparseLowRank
from zoo.layers.lowrank.sparse import check_options
from zoo.patterns import check_used, matched, patterns_of

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SLTrain(Change, kind="sltrain"):
    """``SparseLowRank`` in place of the linear layers that it makes smaller, but for the head's.

    Subclasses with rules of their own (routers in float32), weights that two layers share and experts in one tensor
    stay as they are; so do embeddings and norms. Biases are kept, the other weights of these layers are not: it is a
    way to train, and starts from the beginning.

    Paper: Han et al., "SLTrain", arXiv 2406.02214; its sizes have r a quarter or a third of the width, a density of
    0.03 (0.05 for 7B) and alpha of 32 (60M), 16 (130M, 350M) and 8 (1B, 7B).
    """

    rank: int = 128
    """r of every layer."""
    density: float = 0.03
    """Share of a matrix that has numbers of its own."""
    alpha: float = 16.0
    """The product of the two narrow matrices is times alpha / r."""
    start: str = "sparse"
    """What a layer is at first: "sparse", the sparse part alone (B is 0), or "drawn", the product too, as arXiv
    2505.22922 has it for low ranks without a sparse part (density 0), which would stay 0 behind one another."""
    skip: tuple[str, ...] = ()
    """Names of layers to leave, with wildcards."""

    def __post_init__(self):
        check_options(self.rank, self.density, self.alpha)
        if self.start not in ("sparse", "drawn"):
            raise ValueError(f"start must be 'sparse' or 'drawn', got {self.start!r}")

    def install(self, model: nn.Module) -> None:
        """Replace them, in place."""
        layers = {name: layer for name, layer in replaceable(model).items() if name != "head"}
        layers = {name: layer for name, layer in layers.items() if type(layer) is nn.Linear}
        if not layers:
            raise ValueError("the model has no linear layers to replace")
        skip = patterns_of(self.skip)
        check_used(skip, layers, "layer")
        layers = {name: layer for name, layer in layers.items() if not matched(name, skip)}
        made = {name: self._of(layer) for name, layer in layers.items() if self._is_smaller(layer)}
        if not made:
            raise ValueError(f"rank {self.rank} makes none of the {len(layers)} layers smaller: take a lower one")
        for name, layer in made.items():
            model.set_submodule(name, layer)

    def _of(self, layer: nn.Linear) -> SparseLowRank:
        device = None if layer.weight.is_meta else layer.weight.device  # where a checkpoint's tensors will come
        made = SparseLowRank(
            layer.in_features, layer.out_features, self.rank, self.density, self.alpha, layer.bias is not None,
            device=device, dtype=layer.weight.dtype,
        )  # fmt: skip
        if layer.bias is not None:
            made.B.bias = layer.bias
        if self.start == "drawn":
            nn.init.kaiming_uniform_(made.B.weight, a=5**0.5)
        return made.train(layer.training)

    def _is_smaller(self, layer: nn.Linear) -> bool:
        rows, columns = layer.weight.shape
        return self.rank * (rows + columns) + int(self.density * rows * columns) < rows * columns


def sltrain(model: Model, rank: int, density: float = 0.03, alpha: float = 16.0, skip: tuple[str, ...] = ()) -> Model:
    """Make the change ``SLTrain`` to a model built by ``create_model``, in place, before its optimiser is made.

    In a recipe: ``model_args: {changes: [{kind: sltrain, rank: 32}]}``. ``zoo.merge_sltrain`` makes it plain again.

    Returns:
        The model.

    Raises:
        ValueError: for a rank, density or alpha out of range, a pattern that fits no layer, or where no layer would
            become smaller; nothing is changed then.
    """
    apply(model, SLTrain(rank=rank, density=density, alpha=alpha, skip=tuple(skip)))
    return model


def merge_sltrain(model: Model) -> Model:
    """Put plain linear layers of the same outputs in place of all ``SparseLowRank``, in place: to generate, to export,
    to save as a model like any other.

    Returns:
        The model.

    Raises:
        ValueError: for a model that has none, or adapters or records in their factors.
    """
    held = {name: module for name, module in model.named_modules() if isinstance(module, SparseLowRank)}
    if not held:
        raise ValueError("the model has no layers of SLTrain to merge")
    for name, plain in {name: layer.merged() for name, layer in held.items()}.items():
        model.set_submodule(name, plain.train(held[name].training))
    cast(Any, model).changes = tuple(change for change in changes_of(model) if not isinstance(change, SLTrain))
    return model
