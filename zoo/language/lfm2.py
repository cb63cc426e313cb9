"""LFM2: short convolutions between two gates, and attention with normalised queries and keys in some of the blocks.

Paper: Amini et al., "LFM2 Technical Report", arXiv 2511.23404. Sizes of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import CausalAttention, DoubleGatedConv, RMSNorm, SwiGLU
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class LFM2Config(LanguageConfig):
    """Options of LFM2."""

    vocab_size: int = 65536
    attention_layers: tuple[int, ...] = (2, 5, 8, 10, 12, 14)
    """Blocks (from 0) with attention in place of a convolution."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int = 8
    """Key and value heads."""
    rope_base: float = 1e6
    """Wavelength base of the rotary positions."""
    kernel_size: int = 3
    """Taps of the convolutions."""
    conv_bias: bool = False
    """The convolutions and their projections have biases."""
    mlp_dim: int
    """Hidden width of the SwiGLU."""
    residual_in_fp32: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "num_kv_heads", "kernel_size", "mlp_dim")
        if not set(self.attention_layers) <= set(range(self.depth)):
            raise ValueError(
                f"attention_layers must be blocks in [0, depth = {self.depth}), got {self.attention_layers}"
            )


class LFM2LanguageModel(LanguageModel):
    """A stack of gated short convolutions, some of them replaced by attention, each with SwiGLU."""

    config: LFM2Config

    def build_block(self, index: int) -> Block:
        """Norm and convolution or attention, norm and SwiGLU."""
        c = self.config
        if index in c.attention_layers:
            q_norm, k_norm = (RMSNorm(c.dim // c.num_heads, c.norm_eps) for _ in range(2))
            mixer = CausalAttention(
                c.dim, c.num_heads, c.num_kv_heads, c.rope_base, q_norm=q_norm, k_norm=k_norm
            )  # fmt: skip
        else:
            mixer = DoubleGatedConv(c.dim, c.kernel_size, c.conv_bias)
        return Block(c, mixer, SwiGLU(c.dim, c.mlp_dim))


_register = partial(
    register_model,
    LFM2LanguageModel,
    task="language",
    family="lfm2",
    paper=Paper("LFM2 Technical Report", "2511.23404", 2025),
)


@_register()
def lfm2_nano():
    return LFM2Config(
        vocab_size=256, dim=128, depth=4, attention_layers=(2,), num_heads=4, num_kv_heads=2, rope_base=1e4, mlp_dim=256
    )


@_register()
def lfm2_350m():
    return LFM2Config(dim=1024, depth=16, num_heads=16, mlp_dim=4608)


@_register()
def lfm2_700m():
    return LFM2Config(dim=1536, depth=16, num_heads=24, mlp_dim=6912)


@_register()
def lfm2_1_2b():
    return LFM2Config(dim=2048, depth=16, num_heads=32, mlp_dim=8192)


@_register()
def lfm2_2_6b():
    return LFM2Config(dim=2048, depth=30, attention_layers=(2, 5, 9, 13, 17, 21, 24, 27), num_heads=32, mlp_dim=10752)
