"""What models of sequences and sets of real vectors share: encoder, blocks, norm, and the decoder of each vector."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.layers import recompute


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressorConfig:
    """Options of every model that reads vectors and answers each with another."""

    in_features: int
    """Numbers in a vector that is read."""
    out_features: int
    """Numbers that answer it."""
    dim: int
    """Model width."""
    depth: int
    """Blocks."""
    num_heads: int
    """Heads."""
    mlp_dim: int
    """Hidden units of the MLP."""

    def __post_init__(self):
        require_positive(self, "in_features", "out_features", "dim", "depth", "num_heads", "mlp_dim")
        require_ranges(self)


class SequenceRegressor(nn.Module, ABC):
    """Vectors to the model's width, blocks that read all of them, a norm, and a linear layer to what is wanted."""

    config: RegressorConfig

    def __init__(self, config: RegressorConfig, read_features: int | None = None):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.embed = nn.Linear(read_features or c.in_features, c.dim)
        self.blocks = nn.ModuleList(self.build_block() for _ in range(c.depth))
        self.norm = self.build_norm()
        self.head = nn.Linear(c.dim, c.out_features)

    @abstractmethod
    def build_block(self) -> nn.Module:
        """A block: x (B, T, dim) and what ``read`` gives it besides -> (B, T, dim)."""

    @abstractmethod
    def build_norm(self) -> nn.Module:
        """What follows the blocks."""

    @abstractmethod
    def read(self, inputs: Tensor) -> tuple[Tensor, Any]:
        """inputs (B, T, in_features) -> x (B, T, dim), and what every block is given besides."""

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs (B, T, in_features) -> (B, T, out_features).

        Raises:
            ValueError: for inputs of another shape, or integers.
        """
        self._check(inputs)
        x, context = self.read(inputs)
        for block in self.blocks:
            x = recompute(block, x, context) if self.grad_checkpointing and self.training else block(x, context)
        return self.head(self.norm(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass instead of keeping what they computed."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone, besides biases and norms: none."""
        return set()

    def _check(self, inputs: Tensor) -> None:
        wanted = self.config.in_features
        if inputs.dim() != 3 or inputs.shape[-1] != wanted or not inputs.is_floating_point() or not inputs.shape[1]:
            raise ValueError(
                f"inputs must be (B, T, {wanted}) floats with T >= 1, got {tuple(inputs.shape)} {inputs.dtype}"
            )
