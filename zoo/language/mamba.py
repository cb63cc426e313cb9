"""Mamba: selective state spaces in place of attention and MLP; and FalconMamba, which normalises B, C and dt.

Papers: Gu and Dao, arXiv 2312.00752, with the sizes and vocabulary of the authors' checkpoints trained on the Pile; Zuo
et al., "Falcon Mamba", arXiv 2410.05355.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import Mamba
from zoo.layers.norm import PlainRMSNorm
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig(LanguageConfig):
    """Options of Mamba, those of the ``Mamba`` mixer among them."""

    vocab_size: int = 50280
    d_state: int = 16
    """State size of a channel."""
    d_conv: int = 4
    """Taps of the causal convolution."""
    expand: int = 2
    """Inner width over dim."""
    dt_rank: int | None = None
    """Rank of the step sizes' projection; dim / 16 rounded up when None."""
    conv_bias: bool = True
    """The convolution has a bias."""
    bias: bool = False
    """The projections in and out have biases."""
    mixer_norm_eps: float | None = None
    """Added to the mean square in norms, without weights, of B, C and what dt is made of; None: no such norms."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "d_state", "d_conv", "expand", "dt_rank")


class MambaLanguageModel(LanguageModel):
    """A stack of Mamba blocks."""

    config: MambaConfig

    def build_block(self, index: int) -> Block:
        """Norm and Mamba mixer."""
        c = self.config
        eps = c.mixer_norm_eps
        norm = None if eps is None else lambda _: PlainRMSNorm(eps)
        return Block(c, Mamba(c.dim, c.d_state, c.d_conv, c.expand, c.dt_rank, c.conv_bias, c.bias, norm))


_register = partial(
    register_model,
    MambaLanguageModel,
    task="language",
    family="mamba",
    paper=Paper("Mamba: Linear-Time Sequence Modeling with Selective State Spaces", "2312.00752", 2023),
)


@_register()
def mamba_nano():
    return MambaConfig(vocab_size=256, dim=128, depth=4)


@_register()
def mamba_130m():
    return MambaConfig(dim=768, depth=24)


@_register()
def mamba_370m():
    return MambaConfig(dim=1024, depth=48)


@_register()
def mamba_790m():
    return MambaConfig(dim=1536, depth=48)


@_register()
def mamba_1_4b():
    return MambaConfig(dim=2048, depth=48)


@_register()
def mamba_2_8b():
    return MambaConfig(dim=2560, depth=64)


@_register(paper=Paper("Falcon Mamba: The First Competitive Attention-free 7B Language Model", "2410.05355", 2024))
def falcon_mamba_7b():
    return MambaConfig(vocab_size=65024, dim=4096, depth=64, mixer_norm_eps=1e-6, tie_embeddings=False)


@_register()
def based_mamba_360m():
    """The baseline of BASED (Arora et al., arXiv 2402.18668)."""
    return MambaConfig(vocab_size=50288, dim=1024, depth=46)


@_register()
def based_mamba_1_3b():
    """The baseline of BASED (Arora et al., arXiv 2402.18668)."""
    return MambaConfig(vocab_size=50288, dim=2048, depth=46)
