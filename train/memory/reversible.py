"""Reversible layers: what they computed is computed backwards from their output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.language.coupled import CoupledBlock
from zoo.layers import ReversibleSequence
from zoo.layers.recompute import recomputed_by
from zoo.layers.replay import autocast_mode
from zoo.layers.reversible import couple, undo
from zoo.train.memory.method import Memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reversible(Memory, kind="reversible"):
    """Of a chain of reversible layers the output alone is kept, however deep it is.

    Only where the architecture is reversible: two streams, each of which is added to by a function of the other, as
    revunet3d has them, and language models after ``zoo.reversible``. What undoing a sum rounds away is in the
    gradients: they are those of plain training to rounding, which grows with depth.

    Papers: Gomez et al., "The Reversible Residual Network", arXiv 1707.04585; Kitaev et al., "Reformer", arXiv
    2001.04451.
    """

    def check(self, model: nn.Module) -> None:
        """A model with reversible layers."""
        if not any(isinstance(module, (ReversibleSequence, CoupledBlock)) for module in model.modules()):
            raise ValueError(
                f"reversible: {type(model).__name__} adds to one stream, which cannot be undone: take checkpointing, a "
                "model of reversible layers (revunet3d), or zoo.reversible (changes: [{kind: reversible}]) to train a "
                "language model from the start"
            )

    def install(self, model: nn.Module) -> None:
        """Coupled blocks go through ``zoo.layers.recompute``."""
        if _is_coupled(model):
            model.set_grad_checkpointing(True)  # type: ignore[operator]

    def remove(self, model: nn.Module) -> None:
        """They store their activations."""
        if _is_coupled(model):
            model.set_grad_checkpointing(False)  # type: ignore[operator]

    @contextmanager
    def forward(self, model: nn.Module) -> Iterator[None]:
        """Its layers compute their activations again, whatever the model's options say."""
        before = [(part, part.recompute) for part in model.modules() if isinstance(part, ReversibleSequence)]
        if _is_coupled(model):
            with recomputed_by(partial(_run, _Chain())):
                yield
            return
        try:
            for sequence, _ in before:
                sequence.recompute = True
            yield
        finally:
            for sequence, recompute in before:
                sequence.recompute = recompute


class _Chain:
    """Blocks one after the other; in the backward pass the output of the next one to be undone."""

    output: Tensor | None = None


def _run(chain: _Chain, block: CoupledBlock, x: Tensor, _: None, seq_idx: Tensor | None) -> Tensor:
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    y: Tensor = _Coupled.apply(block.enter(x), block, seq_idx, chain, *parameters)  # type: ignore[assignment]
    return block.leave(y)


class _Coupled(torch.autograd.Function):
    """A block on its streams; it keeps its output only where it is the last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: CoupledBlock, seq_idx: Tensor | None, chain: _Chain, *parameters: Tensor
    ) -> Tensor:
        ctx.block, ctx.chain, ctx.autocast, ctx.parameters = block, chain, autocast_mode(x.device), parameters
        x1, x2 = x.detach().chunk(2, dim=-1)
        x1, x2, ctx.states = couple(block.branches(None, seq_idx), x1, x2, ctx.autocast)
        y = torch.cat([x1, x2], dim=-1)
        ctx.save_for_backward(y if block.last else None, seq_idx, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, seq_idx = ctx.saved_tensors[:2]
        y = ctx.chain.output if y is None else y
        halves = y.chunk(2, dim=-1), dy.chunk(2, dim=-1)
        x, dx, gradients = undo(ctx.block.branches(None, seq_idx), ctx.states, ctx.autocast, *halves)
        ctx.chain.output = None if ctx.block.first else torch.cat(x, dim=-1)
        return torch.cat(dx, dim=-1), None, None, None, *(gradients[parameter] for parameter in ctx.parameters)


def _is_coupled(model: nn.Module) -> bool:
    return any(isinstance(module, CoupledBlock) for module in model.modules())
