"""A language model that reads a text in chunks, and weaves what its layers made of earlier ones into later ones."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo.changes import Change, apply
from zoo.language.base import LanguageModel
from zoo.layers.memory.reweaving import ContextReweaving, LatentStates
from zoo.layers.precision import computes_in

Model = TypeVar("Model", bound=LanguageModel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reweaving(Change, kind="context_reweaving"):
    """A ``ContextReweaving`` in a language model, ``model.reweaving``, which changes no output until ``Rewoven``
    reads with it, and none then until it is trained."""

    captured: tuple[int, ...] = (0,)
    """Numbers of the blocks whose outputs are kept."""
    woven: int = 0
    """Number of the block after which they are woven in."""
    keep: int = 64
    """Tokens that are kept."""
    num_heads: int = 4
    """Of the attention to them."""

    def install(self, model: nn.Module) -> None:
        """Put it in place, with a gate of 0."""
        if not isinstance(model, LanguageModel) or not model.straight:
            raise ValueError(
                f"reweaving takes a language model whose blocks run one after the other, got {type(model).__name__}"
            )
        places, count = (*self.captured, self.woven), len(model.blocks)
        if not self.captured or not all(0 <= index < count for index in places):
            raise ValueError(
                f"captured and woven must be numbers of blocks in [0, {count}), one captured at least, got "
                f"{list(self.captured)} and {self.woven}"
            )
        if hasattr(model, "reweaving"):
            raise ValueError("the model has a reweaving already: train that, or begin with the plain model")
        like = computes_in(model)
        with torch.device(like.device):
            made: Any = ContextReweaving(model.stream_dim, len(self.captured), self.keep, self.num_heads)
        made.blocks, made.woven = self.captured, self.woven
        model.reweaving = made.to(like.dtype)


def add_reweaving(model: Model, **options: Any) -> Model:
    """Put a ``ContextReweaving`` in a language model, in place.

    >>> add_reweaving(model, captured=(1, 3), woven=1, keep=64)
    >>> text = Rewoven(model)
    >>> loss = sum(text.read(chunk, labels=chunk) for chunk in tokens.split(128, 1))

    Args:
        model: of ``create_model``, whose outputs do not change.
        options: those of ``Reweaving``.

    Returns:
        The model; ``zoo.save_model`` keeps it.

    Raises:
        ValueError: for another model, or numbers of blocks that it does not have. TypeError: for an option that there
            is not.

    Inspired by arXiv 2502.02046; see ``ContextReweaving``.
    """
    apply(model, Reweaving(**options))
    return model


class Rewoven:
    """One text, or a batch of them, read chunk by chunk.

    Attributes:
        memory: what is kept of the chunks so far; None before the first.

    Raises:
        ValueError: for a model without a reweaving.
    """

    def __init__(self, model: LanguageModel):
        if not isinstance(getattr(model, "reweaving", None), ContextReweaving):
            raise ValueError("the model has no reweaving: put it in place by add_reweaving(model)")
        self.model: Any = model
        self.memory: LatentStates | None = None

    def read(self, tokens: Tensor, **call: Any) -> Tensor:
        """What the model makes of the next chunk, which sees earlier ones through the memory alone.

        Args:
            tokens: (B, T).
            call: what else ``LanguageModel.forward`` takes; with a state it sees these too.

        Raises:
            ValueError: as ``LanguageModel.forward``, and for another number of rows than before.
        """
        reweaving, past = self.model.reweaving, self.memory
        if past is not None and len(past.states) != len(tokens):
            raise ValueError(f"the memory is of {len(past.states)} texts, the chunk of {len(tokens)}")
        seen: dict[int, Tensor] = {}

        def weave(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return reweaving(output, past)

        def capture(index: int):
            def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
                seen[index] = output.detach()

            return keep

        with ExitStack() as hooks:
            hooks.callback(self.model.blocks[reweaving.woven].register_forward_hook(weave).remove)
            for index in reweaving.blocks:
                hooks.callback(self.model.blocks[index].register_forward_hook(capture(index)).remove)
            found = self.model(tokens, **call)
        self.memory = reweaving.remember(past, [seen[index] for index in reweaving.blocks])
        return found
