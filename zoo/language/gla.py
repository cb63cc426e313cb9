"""GLA and RetNet: linear attention with decay, with SwiGLU between.

Papers: Yang et al., arXiv 2312.06635; Sun et al., arXiv 2307.08621. Sizes, vocabulary, norms and untied head of the
configurations of flash-linear-attention and flame (gla_340M, gla_1B, gla_7B; RetNetConfig); RetNet's larger sizes are
the depths, widths and heads of its paper, with SwiGLU as wide as there.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import GatedLinearAttention, Retention, SwiGLU
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class GLAConfig(LanguageConfig):
    """Options of GLA, those of the mixer among them."""

    vocab_size: int = 32000
    norm_eps: float = 1e-6
    num_heads: int = 4
    """Heads, each with a memory of its own."""
    expand_k: float = 0.5
    """Width of all queries over dim."""
    expand_v: float = 1.0
    """Width of all values over dim."""
    mlp_dim: int
    """Hidden width of SwiGLU."""
    chunk_size: int = 64
    """Steps a chunk of the parallel form; it changes the speed, not the result."""
    tie_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "mlp_dim", "chunk_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetNetConfig(GLAConfig):
    """Options of RetNet, those of the mixer among them."""

    num_heads: int = 8
    expand_k: float = 1.0
    expand_v: float = 2.0


class GLALanguageModel(LanguageModel):
    """A stack of gated linear attentions, each with a SwiGLU."""

    config: GLAConfig
    mixer: type[GatedLinearAttention] = GatedLinearAttention

    def build_block(self, index: int) -> Block:
        """Norm and mixer, norm and SwiGLU."""
        c = self.config
        mixer = self.mixer(c.dim, c.num_heads, c.expand_k, c.expand_v, chunk_size=c.chunk_size, norm_eps=c.norm_eps)
        return Block(c, mixer, SwiGLU(c.dim, c.mlp_dim))


class RetNetLanguageModel(GLALanguageModel):
    """The same with retention."""

    mixer = Retention


_register_gla = partial(
    register_model,
    GLALanguageModel,
    task="language",
    family="gla",
    paper=Paper("Gated Linear Attention Transformers with Hardware-Efficient Training", "2312.06635", 2023),
)
_register_retnet = partial(
    register_model,
    RetNetLanguageModel,
    task="language",
    family="retnet",
    paper=Paper("Retentive Network: A Successor to Transformer for Large Language Models", "2307.08621", 2023),
)


@_register_gla()
def gla_nano():
    return GLAConfig(vocab_size=256, dim=128, depth=3, mlp_dim=320, tie_embeddings=True, norm_eps=1e-5)


@_register_gla()
def gla_340m():
    return GLAConfig(dim=1024, depth=24, mlp_dim=2816)


@_register_gla()
def gla_1_3b():
    return GLAConfig(dim=2048, depth=24, mlp_dim=5632)


@_register_gla()
def gla_7b():
    return GLAConfig(dim=4096, depth=32, num_heads=16, mlp_dim=11008)


@_register_retnet()
def retnet_nano():
    return RetNetConfig(vocab_size=256, dim=128, depth=3, num_heads=4, mlp_dim=256, tie_embeddings=True, norm_eps=1e-5)


@_register_retnet()
def retnet_1_3b():
    return RetNetConfig(dim=2048, depth=24, mlp_dim=2816)


@_register_retnet()
def retnet_2_7b():
    return RetNetConfig(dim=2560, depth=32, num_heads=10, mlp_dim=3584)


@_register_retnet()
def retnet_6_7b():
    return RetNetConfig(dim=4096, depth=32, num_heads=16, mlp_dim=5632)
