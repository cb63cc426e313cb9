"""Hybrids: state spaces in most blocks, attention in a few, and what follows each of them, by two patterns.

A family says what its state space is, and which letters its patterns have.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import CausalAttention, Mamba2, Mixer, SwiGLU
from zoo.layers.options import require_limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatternConfig(LanguageConfig):
    """Options of every stack that two patterns lay out."""

    letters: ClassVar[dict[str, str]] = {"mixers": "M*", "mlps": "-"}

    mixers: str
    """One letter a block, from the first again where there are more blocks: "M" is a state space, "*" attention."""
    mlps: str = "-"
    """What follows the mixer, likewise: "-" is a feed-forward layer, "E" one of experts, "." nothing."""
    mlp_dim: int
    """Hidden width of a feed-forward layer."""
    tie_embeddings: bool = False
    residual_in_fp32: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "mlp_dim")
        for name, letters in self.letters.items():
            if not getattr(self, name) or set(getattr(self, name)) - set(letters):
                raise ValueError(
                    f"{name} must have one of the letters {letters!r} a block, got {getattr(self, name)!r}"
                )

    def kind(self, index: int) -> str:
        """The letters of the mixer and of what follows it in block ``index``."""
        return self.mixers[index % len(self.mixers)] + self.mlps[index % len(self.mlps)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridConfig(PatternConfig):
    """Options of every hybrid with grouped-query attention."""

    num_heads: int
    """Query heads of the attention."""
    num_kv_heads: int
    """Key and value heads of the attention."""
    head_dim: int | None = None
    """Width of an attention head, dim / num_heads when None."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "num_kv_heads", "head_dim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2HybridConfig(HybridConfig):
    """Options of every hybrid of Mamba-2."""

    ssm_dim: int
    """Inner width of Mamba-2."""
    ssm_head_dim: int = 64
    """Width of a Mamba-2 head."""
    d_state: int = 128
    """State size of a Mamba-2 head."""
    d_conv: int = 4
    """Taps of Mamba-2's convolution."""
    num_groups: int = 1
    """Groups of Mamba-2 heads that share B and C."""
    chunk_size: int = 64
    """Steps a chunk of Mamba-2; it changes the speed, not the result."""
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    """Smallest and largest step size."""
    conv_bias: bool = True
    """The convolution has a bias."""
    ssm_bias: bool = False
    """Mamba-2's projections in and out have biases."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "ssm_dim", "ssm_head_dim", "d_state", "d_conv", "num_groups", "chunk_size")
        require_limits("dt_limit", self.dt_limit)


class PatternLanguageModel(LanguageModel):
    """A stack of blocks whose parts the patterns name."""

    config: PatternConfig

    def build_block(self, index: int) -> Block:
        """Norm and state space or attention; norm and feed-forward layer or experts, or nothing."""
        mixer, mlp = self.config.kind(index)
        build_mixer = {"M": self.build_ssm, "*": self.build_attention}[mixer]
        build_mlp = {"-": self.build_mlp, "E": self.build_experts, ".": lambda: None}[mlp]
        return Block(self.config, build_mixer(), build_mlp())

    def build_ssm(self) -> Mixer:
        """The state space."""
        raise NotImplementedError

    def build_attention(self) -> Mixer:
        """The attention."""
        raise NotImplementedError

    def build_mlp(self) -> nn.Module:
        """The feed-forward layer."""
        return SwiGLU(self.config.dim, self.config.mlp_dim)

    def build_experts(self) -> nn.Module:
        """The feed-forward layer of experts."""
        raise NotImplementedError


class HybridLanguageModel(PatternLanguageModel):
    """A hybrid with grouped-query attention."""

    config: HybridConfig

    def build_attention(self) -> Mixer:
        """Attention without positions, which the state spaces know."""
        c = self.config
        return CausalAttention(c.dim, c.num_heads, c.num_kv_heads, rope_base=None, head_dim=c.head_dim)


class Mamba2HybridLanguageModel(HybridLanguageModel):
    """A hybrid of Mamba-2."""

    config: Mamba2HybridConfig

    def build_ssm(self) -> Mixer:
        """Mamba-2."""
        c = self.config
        return Mamba2(
            c.dim, c.d_state, c.d_conv, head_dim=c.ssm_head_dim, num_groups=c.num_groups, chunk_size=c.chunk_size,
            dt_limit=c.dt_limit, norm_eps=c.norm_eps, conv_bias=c.conv_bias, bias=c.ssm_bias, d_inner=c.ssm_dim,
        )  # fmt: skip
