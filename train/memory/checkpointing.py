"""Methods that say how a model's blocks are run, and the plainest of them."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from zoo.layers.recompute import recomputed_by
from zoo.train.memory.method import Memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing(Memory, kind="checkpointing"):
    """Of each block only the input is kept, and the block computed again in the backward pass.

    Paper: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
    """

    sharded = True

    def check(self, model: nn.Module) -> None:
        """A model of blocks that can be recomputed."""
        if not hasattr(model, "set_grad_checkpointing"):
            raise ValueError(f"{self.kind}: {type(model).__name__} has no blocks that could be computed again")

    def install(self, model: nn.Module) -> None:
        """Its blocks go through ``zoo.layers.recompute``."""
        model.set_grad_checkpointing(True)  # type: ignore[operator]

    def remove(self, model: nn.Module) -> None:
        """Its blocks store their activations."""
        model.set_grad_checkpointing(False)  # type: ignore[operator]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blockwise(Checkpointing):
    """A method that runs each block in another way: ``run`` is called in the place of ``recompute``."""

    sharded = False

    def forward(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Its blocks are run by ``run``."""
        return recomputed_by(self.run)

    def run(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """``block(x, *args)``."""
        raise NotImplementedError
