"""DeltaNet and Gated DeltaNet: a memory that is corrected instead of added to, with SwiGLU between.

Papers: Yang et al., arXiv 2406.06484; Yang, Kautz and Hatamizadeh, arXiv 2412.06464. Sizes, vocabulary, norms and
untied head of the configurations of flash-linear-attention and flame (delta_net_340M, delta_net_1B, gated_deltanet_1B).
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import SwiGLU
from zoo.layers.ssm import DeltaNet, GatedDeltaNet
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(LanguageConfig):
    """Options of DeltaNet, those of the mixer among them."""

    vocab_size: int = 32000
    norm_eps: float = 1e-6
    num_heads: int
    """Heads, each with a memory of its own."""
    head_dim: int | None = None
    """Channels of a query and key; None: dim / num_heads."""
    expand_v: float = 1.0
    """Channels of a value over head_dim."""
    d_conv: int = 4
    """Taps of the causal convolutions."""
    negative_eigenvalues: bool = False
    """A step may turn around what it finds in the memory: beta in (0, 2)."""
    mlp_dim: int
    """Hidden width of SwiGLU."""
    chunk_size: int = 64
    """Steps a chunk of the parallel form; it changes the speed, not the result."""
    tie_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "d_conv", "mlp_dim", "chunk_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig(DeltaNetConfig):
    """Options of Gated DeltaNet."""

    expand_v: float = 2.0


class DeltaNetLanguageModel(LanguageModel):
    """A stack of DeltaNet mixers, each with a SwiGLU."""

    config: DeltaNetConfig
    mixer: type[DeltaNet] = DeltaNet

    def build_block(self, index: int) -> Block:
        """Norm and mixer, norm and SwiGLU."""
        c = self.config
        mixer = self.mixer(
            c.dim, c.num_heads, c.head_dim, c.expand_v, d_conv=c.d_conv, norm_eps=c.norm_eps,
            negative_eigenvalues=c.negative_eigenvalues, chunk_size=c.chunk_size,
        )  # fmt: skip
        return Block(c, mixer, SwiGLU(c.dim, c.mlp_dim))


class GatedDeltaNetLanguageModel(DeltaNetLanguageModel):
    """The same with a memory that decays and a gate."""

    mixer = GatedDeltaNet


_register = partial(
    register_model,
    DeltaNetLanguageModel,
    task="language",
    family="deltanet",
    paper=Paper("Parallelizing Linear Transformers with the Delta Rule over Sequence Length", "2406.06484", 2024),
)
_register_gated = partial(
    register_model,
    GatedDeltaNetLanguageModel,
    task="language",
    family="gated_deltanet",
    paper=Paper("Gated Delta Networks: Improving Mamba2 with Delta Rule", "2412.06464", 2024),
)


@_register()
def deltanet_nano():
    return DeltaNetConfig(
        vocab_size=256, dim=128, depth=3, num_heads=4, mlp_dim=320, tie_embeddings=True, norm_eps=1e-5
    )


@_register()
def deltanet_340m():
    return DeltaNetConfig(dim=1024, depth=24, num_heads=8, head_dim=128, mlp_dim=2816)


@_register()
def deltanet_1_3b():
    return DeltaNetConfig(dim=2048, depth=24, num_heads=16, head_dim=128, mlp_dim=5632)


@_register_gated()
def gated_deltanet_nano():
    return GatedDeltaNetConfig(
        vocab_size=256, dim=128, depth=3, num_heads=3, head_dim=32, mlp_dim=320, tie_embeddings=True, norm_eps=1e-5
    )


@_register_gated()
def gated_deltanet_1_3b():
    return GatedDeltaNetConfig(dim=2048, depth=21, num_heads=6, head_dim=256, mlp_dim=5632)
