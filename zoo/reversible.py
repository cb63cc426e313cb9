"""Residual language models made reversible, to be trained from the start."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from torch import nn

from zoo.changes import Change, apply
from zoo.language.base import LanguageModel
from zoo.language.block import Block
from zoo.language.coupled import CoupledBlock
from zoo.layers.report import Reports

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReversibleBlocks(Change, kind="reversible"):
    """``CoupledBlock`` in place of every residual block, of the same parts."""

    def install(self, model: nn.Module) -> None:
        """Replace all blocks, or none."""
        name = type(model).__name__
        if not isinstance(model, LanguageModel) or not model.straight or model.exits is not None:
            raise ValueError(f"reversible: {name} is no plain stack of residual blocks")
        for index, block in enumerate(model.blocks):
            if type(block) is not Block or any(isinstance(part, Reports) for part in block.modules()):
                raise ValueError(
                    f"reversible: blocks.{index} of {name} ({type(block).__name__}) is no pre-norm block without side "
                    "losses"
                )
        last = len(model.blocks) - 1
        model.blocks = nn.ModuleList(
            CoupledBlock.of(block, index == 0, index == last)  # type: ignore[arg-type]
            for index, block in enumerate(model.blocks)
        )
        model.straight = False  # type: ignore[misc]  # between the blocks there are two streams


def reversible(model: Model) -> Model:
    """Let the blocks of a language model add to two streams in turns, in place: each can then be computed backwards
    from its output, and ``--memory reversible`` (``zoo.train.memory``) keeps no activations of any.

    It is another function of the same weights, to be trained from the start. ``zoo.save_model`` writes that it was
    done.

    Args:
        model: of pre-norm residual blocks, one after the other.

    Returns:
        The model.

    Raises:
        ValueError: for another model; it is as it was then.

    Papers: Gomez et al., "The Reversible Residual Network", arXiv 1707.04585; Kitaev et al., "Reformer", arXiv
    2001.04451.
    """
    apply(model, ReversibleBlocks())
    return model
