"""Parts of a transformer that are models themselves: some of its blocks, with narrower feed-forward layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.changes import Change, apply
from zoo.language.base import LanguageModel
from zoo.layers import SwiGLU

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subnetwork(Change, kind="subnetwork"):
    """Of a language model the blocks that are kept, and how many hidden numbers of each one's SwiGLU, the first ones.

    As a change of a model (``zoo.subnetwork``) it takes the rest out.
    """

    blocks: tuple[int, ...] = (0,)
    """Numbers of the blocks, ascending."""
    widths: tuple[int, ...] = ()
    """Hidden width of the feed-forward layer of each of them; none: as they are."""

    def install(self, model: Any) -> None:
        """Take out all else; what stays keeps its weights."""
        layers = self.layers(model)
        for layer, width in zip(layers, self.widths, strict=False):
            _narrow(layer, width)
        model.blocks = nn.ModuleList(model.blocks[index] for index in self.blocks)

    def layers(self, model: Any) -> list[SwiGLU]:
        """The feed-forward layers that are kept.

        Raises:
            ValueError: for another kind of model, or numbers that it does not have.
        """
        if not isinstance(model, LanguageModel) or not all(isinstance(layer, SwiGLU) for layer in swiglus(model)):
            raise ValueError(f"a language model has sub-networks whose blocks have SwiGLUs: {type(model).__name__} not")
        count = len(model.blocks)
        if not self.blocks or list(self.blocks) != sorted({*self.blocks} & {*range(count)}):
            raise ValueError(f"blocks must be numbers in [0, {count}), ascending, got {list(self.blocks)}")
        if self.widths and len(self.widths) != len(self.blocks):
            raise ValueError(f"widths must be one a block kept, got {len(self.widths)} for {len(self.blocks)}")
        kept = [swiglus(model)[index] for index in self.blocks]
        for layer, width in zip(kept, self.widths, strict=False):
            if not 1 <= width <= layer.w1.out_features:
                raise ValueError(f"a width must be in [1, {layer.w1.out_features}], got {width}")
        return kept

    def parts(self, model: Any) -> dict[str, Tensor]:
        """Views of the model's parameters, under the names that they have where only these blocks are left."""
        found = {}
        for place, (layer, width) in enumerate(zip(self.layers(model), self.widths, strict=False)):
            for name, parameter in layer.named_parameters():
                found[f"blocks.{place}.mlp.{name}"] = _part(name, parameter, width)
        return found


def subnetwork(model: Model, blocks: Sequence[int], widths: Sequence[int] = ()) -> Model:
    """Leave of a language model some blocks, and of their SwiGLUs the first so many hidden numbers, in place.

    Args:
        model: of ``create_model``; sort its hidden numbers first (``sort_neurons``).
        blocks: numbers of those that stay, ascending.
        widths: of each of them; none: as they are.

    Returns:
        The model, which is saved and loaded as such.

    Raises:
        ValueError: for another kind of model, or numbers that it does not have.

    Paper: Sarah et al., "LLaMA-NAS: Efficient Neural Architecture Search for Large Language Models", arXiv 2405.18377.
    """
    apply(model, Subnetwork(blocks=tuple(blocks), widths=tuple(widths)))
    return model


def run(model: Any, part: Subnetwork, *args: Any, **kwargs: Any) -> Any:
    """What a sub-network returns, computed in the whole model's parameters, to which gradients flow."""
    parts = part.parts(model)
    with _only(model, part.blocks):
        return functional_call(model, parts, args, kwargs)


def swiglus(model: Any) -> list[Any]:
    """The feed-forward layers of the blocks, in order."""
    return [getattr(block, "mlp", None) for block in model.blocks]


@torch.no_grad()
def sort_neurons(model: Any) -> None:
    """Put the hidden numbers of each SwiGLU in another order, the most important first; outputs stay, up to rounding.

    Of hidden number i that is the product of the lengths of what makes it and of what it adds,
    ``|W1_i| |W3_i| |W2_i|``.
    """
    Subnetwork(blocks=tuple(range(len(model.blocks)))).layers(model)
    for layer in swiglus(model):
        lengths = [layer.w1.weight.norm(dim=1), layer.w3.weight.norm(dim=1), layer.w2.weight.norm(dim=0)]
        order = (lengths[0] * lengths[1] * lengths[2]).argsort(descending=True)
        for name, parameter in layer.named_parameters():
            if name != "w2.bias":
                parameter.copy_(parameter.index_select(1 if name == "w2.weight" else 0, order))


@contextmanager
def _only(model: Any, blocks: Sequence[int]) -> Iterator[None]:
    before = model.blocks
    model.blocks = nn.ModuleList(before[index] for index in blocks)
    try:
        yield
    finally:
        model.blocks = before


def _narrow(layer: SwiGLU, width: int) -> None:
    for name, parameter in list(layer.named_parameters()):
        owner, _, kind = name.partition(".")
        made = nn.Parameter(_part(name, parameter.detach(), width).clone(), parameter.requires_grad)
        setattr(layer.get_submodule(owner), kind, made)
    layer.w1.out_features = layer.w3.out_features = layer.w2.in_features = width


def _part(name: str, parameter: Tensor, width: int) -> Tensor:
    return parameter if name == "w2.bias" else parameter[:, :width] if name == "w2.weight" else parameter[:width]
