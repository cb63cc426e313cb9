"""Softmax attention made linear, in a model that is trained already."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from torch import nn

from zoo.changes import Change, apply
from zoo.layers import CausalAttention, LizardAttention

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linearized(Change, kind="linearized"):
    """``zoo.layers.LizardAttention`` in place of attention that remembers everything; fields as of ``linearize``."""

    window: int | None = 128
    meta_tokens: int = 4
    linear: bool = True
    gate: bool = True
    softmax_blocks: tuple[int, ...] = ()
    chunk_size: int = 64

    def install(self, model: nn.Module) -> None:
        """Replace it in all blocks but some."""
        blocks = attentions(model)
        if unknown := set(self.softmax_blocks) - blocks.keys():
            raise ValueError(f"softmax_blocks must be some of the blocks with attention, {list(blocks)}; got {unknown}")
        options = {name: value for name, value in vars(self).items() if name != "softmax_blocks"}
        for index in blocks.keys() - set(self.softmax_blocks):
            for name in blocks[index]:
                parent, _, child = name.rpartition(".")
                mixer = model.get_submodule(name)
                setattr(model.get_submodule(parent), child, LizardAttention(mixer, **options))  # type: ignore[arg-type]


def linearize(
    model: Model,
    *,
    window: int | None = 128,
    meta_tokens: int = 4,
    linear: bool = True,
    gate: bool = True,
    softmax: float | tuple[int, ...] = 0.0,
    chunk_size: int = 64,
) -> Model:
    """Replace softmax attention that remembers everything by gated linear attention and a window of it, in place.

    The state no longer grows with the text. Projections, norms and positions stay as they are, and what is new has
    still to learn: ``zoo train docs_lizard_nano`` is a recipe (``zoo.train.tasks.Linearization``). Attention to a
    window and latent attention stay. ``zoo.save_model`` writes what was done, and ``create_model`` does it again.

    Args:
        model: a language model whose blocks have ``CausalAttention``, alone or beside other mixers.
        window: newest steps that softmax attention sees; None for linear attention alone.
        meta_tokens: tokens that take part in its sum alone.
        linear: False leaves the linear attention out. With a window as long as the text and no meta tokens the model
            is then what it was.
        gate: False lets the linear attention forget nothing.
        softmax: blocks that keep their attention, or a share of those that have some, spread evenly.
        chunk_size: steps a chunk of linear attention; it changes the speed, not the result.

    Returns:
        The model; its new parameters are no optimiser's yet.

    Raises:
        ValueError: for a model without such attention, a share outside [0, 1), blocks that have none, or sizes that
            cannot be; it is as it was then.

    Paper: Nguyen et al., "Lizard", arXiv 2507.09025.
    """
    kept = softmax if isinstance(softmax, tuple) else _spread(list(attentions(model)), softmax)
    options = {"meta_tokens": meta_tokens, "linear": linear, "gate": gate, "chunk_size": chunk_size}
    apply(model, Linearized(window=window, softmax_blocks=kept, **options))
    return model


def attentions(model: nn.Module) -> dict[int, list[str]]:
    """Number of a block -> names of its attention that remembers everything: of no class derived from it.

    Raises:
        ValueError: where there is none.
    """
    found: dict[int, list[str]] = {}
    blocks: Any = getattr(model, "blocks", ())
    for index, block in enumerate(blocks):
        names = [name for name, module in block.named_modules() if type(module) is CausalAttention]
        if names:
            found[index] = [f"blocks.{index}.{name}" for name in names]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention to make linear: that is a CausalAttention, which remembers "
            "everything, alone or beside other mixers of a block"
        )
    return found


def _spread(blocks: list[int], share: float) -> tuple[int, ...]:
    """So many of the blocks, at even distances."""
    if not 0 <= share < 1:
        raise ValueError(f"softmax must be a share of the blocks in [0, 1), or a tuple of blocks, got {share}")
    count = round(share * len(blocks))
    return tuple(blocks[int((place + 0.5) * len(blocks) / count)] for place in range(count))
