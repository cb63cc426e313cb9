"""Options of the classifiers whose attention is sparsely activated."""

from __future__ import annotations

import dataclasses

from zoo.config import require_positive
from zoo.layers.depth import SparseActivation, TwoSidedWindow


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseActivationConfig:
    """Options of the mixers that SeqBoat's classifiers are made of."""

    hidden_dim: int
    """Channels of values and their gate."""
    qk_dim: int
    """Channels of queries and keys."""
    d_state: int = 16
    """Averages of a channel and direction."""
    window: int = 128
    """Active tokens that attention sees on either side."""
    attention: str = "softmax"
    """How logits become weights, "softmax" or "relu2"."""
    max_distance: int | None = None
    """Distances in the sequence that have a bias of their own; None: biases are of distances among active tokens."""
    temperature: float = 0.3
    """Of the routers at the start, over the square root of dim."""

    def build_mixer(self, dim: int, drop_rate: float) -> SparseActivation:
        """The mixer of a block."""
        require_positive(self, "hidden_dim", "qk_dim", "d_state", "window", "max_distance")
        attention = TwoSidedWindow(self.qk_dim, self.window, self.attention, self.max_distance)
        return SparseActivation(
            dim, attention, self.hidden_dim, self.qk_dim, self.d_state, self.temperature, drop_rate
        )  # fmt: skip
