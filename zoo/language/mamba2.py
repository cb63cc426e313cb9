"""Mamba-2: state-space duality, a scalar decay a head and a large matrix state.

Paper: Dao and Gu, arXiv 2405.21060. Sizes and vocabulary of the authors' checkpoints trained on the Pile.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import Mamba2
from zoo.layers.attention import ConvolvedAttention
from zoo.layers.options import require_limits
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config(LanguageConfig):
    """Options of Mamba-2, those of the ``Mamba2`` mixer among them."""

    vocab_size: int = 50288
    d_state: int = 128
    """State size of a channel."""
    d_conv: int = 4
    """Taps of the causal convolution."""
    expand: int = 2
    """Inner width over dim."""
    head_dim: int = 64
    """Channels of a head."""
    num_groups: int = 1
    """Groups of heads that share B and C."""
    chunk_size: int = 64
    """Steps a chunk of the parallel form; it changes the speed, not the result."""
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    """Smallest and largest step size."""
    conv_bias: bool = True
    """The convolution has a bias."""
    bias: bool = False
    """The projections in and out have biases."""
    attention_layers: tuple[int, ...] = ()
    """Blocks (from 0) with attention in place of the Mamba-2 mixer."""
    attention_heads: int = 1
    """Heads of these."""
    attention_head_dim: int = 128
    """Width of such a head."""
    attention_rotary_dim: int = 64
    """Channels of its queries and keys that are turned by their position."""

    def __post_init__(self):
        super().__post_init__()
        if not set(self.attention_layers) <= set(range(self.depth)):
            raise ValueError(
                f"attention_layers must be blocks in [0, depth = {self.depth}), got {self.attention_layers}"
            )
        require_positive(self, "d_state", "d_conv", "expand", "head_dim", "num_groups", "chunk_size")
        require_positive(self, "attention_heads", "attention_head_dim", "attention_rotary_dim")
        require_limits("dt_limit", self.dt_limit)


class Mamba2LanguageModel(LanguageModel):
    """A stack of Mamba-2 blocks, or a hybrid in which some have attention."""

    config: Mamba2Config

    def build_block(self, index: int) -> Block:
        """Norm and Mamba-2 mixer, or attention."""
        c = self.config
        if index in c.attention_layers:
            attention = ConvolvedAttention(
                c.dim, c.attention_heads, head_dim=c.attention_head_dim, rotary_dim=c.attention_rotary_dim,
                kernel_size=c.d_conv,
            )  # fmt: skip
            return Block(c, attention)
        mixer = Mamba2(
            c.dim, c.d_state, c.d_conv, c.expand, c.head_dim, c.num_groups, c.chunk_size, c.dt_limit, c.norm_eps,
            c.conv_bias, c.bias,
        )  # fmt: skip
        return Block(c, mixer)


_register = partial(
    register_model,
    Mamba2LanguageModel,
    task="language",
    family="mamba2",
    paper=Paper("Transformers are SSMs: Generalized Models and Efficient Algorithms", "2405.21060", 2024),
)


@_register()
def mamba2_nano():
    return Mamba2Config(vocab_size=256, dim=128, depth=4, d_state=32, head_dim=32)


@_register()
def mamba2_130m():
    return Mamba2Config(dim=768, depth=24)


@_register()
def mamba2_370m():
    return Mamba2Config(dim=1024, depth=48)


@_register()
def mamba2_780m():
    return Mamba2Config(dim=1536, depth=48)


@_register()
def mamba2_1_3b():
    return Mamba2Config(dim=2048, depth=48)


@_register()
def mamba2_2_7b():
    return Mamba2Config(dim=2560, depth=64)


@_register()
def mamba2attn_2_7b():
    return Mamba2Config(dim=2560, depth=64, attention_layers=(9, 18, 27, 36, 45, 56), attention_heads=30)
