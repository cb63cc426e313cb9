"""The plainest method, whose blocks are computed again; others run them in other ways."""

from __future__ import annotations

import dataclasses

from torch import nn

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
