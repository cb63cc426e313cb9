"""Positional attention: a transformer whose attention weights depend on positions alone.

Paper: "Positional Attention: Expressivity and Learnability of Algorithmic Computation", arXiv 2410.01686, and the
authors' code, opallab/positional_attention. The sizes are those of its experiments on the scale of values.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers.attention import PositionalAttention
from zoo.registry import Paper, register_model
from zoo.sequence.base import RegressorConfig, SequenceRegressor

ATTENTIONS = ("positional", "standard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionalConfig(RegressorConfig):
    """Options of the positional transformer."""

    in_features: int = 1
    out_features: int = 1
    length: int
    """Vectors of the longest sequence, n: positions are told apart by n unit vectors, those of the scratch besides."""
    num_scratch: int = 1
    """Further positions, read as zeros and asked nothing, as the authors have."""
    attention: str = "positional"
    """Weights from positions, "positional"; or "standard", from what stands there, with the positions read as input."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "length")
        if self.num_scratch < 0:
            raise ValueError(f"num_scratch must not be negative, got {self.num_scratch}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")

    @property
    def num_codes(self) -> int:
        """Positions there are at most, and the width of their codes."""
        return self.length + self.num_scratch


class PositionalBlock(nn.Module):
    """mlp([x, attention(x)]): nothing is added up and nothing normalised, which would fix the scale of values."""

    def __init__(self, dim: int, attention: PositionalAttention, mlp_dim: int):
        super().__init__()
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(2 * dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        """x (B, T, dim), and the codes (T, k) of positions, None where attention reads x -> (B, T, dim)."""
        return self.mlp(torch.cat([x, self.attention(x, x if codes is None else codes)], dim=-1))


class PositionalModel(SequenceRegressor):
    """Linear layers before and after blocks of attention and an MLP of both their input and its output.

    The weights of attention are the same for all inputs, so that what is mixed scales with the values: the model is
    made for algorithms that know in advance which positions talk to one another, at values beyond those of training.
    """

    config: PositionalConfig

    def __init__(self, config: PositionalConfig):
        self.by_position = config.attention == "positional"
        super().__init__(config, config.in_features + (0 if self.by_position else config.num_codes))

    def build_block(self) -> nn.Module:
        """Attention, and the MLP."""
        c = self.config
        attention = PositionalAttention(c.dim, c.num_heads, c.num_codes if self.by_position else c.dim)
        return PositionalBlock(c.dim, attention, c.mlp_dim)

    def build_norm(self) -> nn.Module:
        """None."""
        return nn.Identity()

    def codes(self, length: int, like: Tensor) -> Tensor:
        """Unit vectors (length + num_scratch, num_codes): of the first positions and of the scratch."""
        units = torch.eye(self.config.num_codes, device=like.device, dtype=like.dtype)
        return torch.cat([units[:length], units[self.config.length :]])

    def read(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The vectors and the scratch, at the model's width, and their codes unless they are among what is read."""
        if inputs.shape[1] > self.config.length:
            raise ValueError(f"sequences must have at most length {self.config.length}, got {inputs.shape[1]}")
        codes = self.codes(inputs.shape[1], inputs)
        inputs = F.pad(inputs, (0, 0, 0, self.config.num_scratch))
        if self.by_position:
            return self.embed(inputs), codes
        return self.embed(torch.cat([inputs, codes.expand(len(inputs), -1, -1)], dim=-1)), None

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs (B, T, in_features), T <= length -> (B, T, out_features)."""
        return super().forward(inputs)[:, : inputs.shape[1]]


_register = partial(
    register_model,
    PositionalModel,
    task="sequence-regression",
    family="positional",
    paper=Paper("Positional Attention: Expressivity and Learnability of Algorithmic Computation", "2410.01686", 2024),
)


@_register()
def positional_nano():
    return PositionalConfig(dim=32, depth=4, num_heads=2, mlp_dim=64, length=8)


@_register()
def positional_n8():
    return PositionalConfig(dim=64, depth=4, num_heads=2, mlp_dim=64, length=8)
