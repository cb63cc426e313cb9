"""LongConv: the gated blocks of H3 over learned convolutions as long as the sequence, and two attention layers.

Paper: Fu et al., arXiv 2302.06646. Sizes, regularisation and initial values of the authors' code for the Pile; their
125M has attention at blocks 1 and 8, the larger sizes where their H3 models of these sizes have it. The norms are this
library's RMSNorm and its attention has no biases; the authors' dropout of embeddings and attention is left out.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import CausalAttention, Mlp
from zoo.layers.conv import H3Conv
from zoo.registry import Paper, register_model
from zoo.taps import TapsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongConvConfig(TapsConfig, LanguageConfig):
    """Options of LongConv; ``initializer_range`` is that of the embedding and of all projections."""

    vocab_size: int = 50264
    kernel_length: int = 2048
    """Taps of each convolution, the longest distance it sees; the length of the training sequences in the paper.
    Longer sequences work, each step then sees the newest kernel_length."""
    attention_layers: tuple[int, ...]
    """Blocks (from 0) with causal attention, without position information, in place of the convolutions."""
    num_heads: int
    """Heads of that attention."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over dim."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "kernel_length", "num_heads", "mlp_ratio")
        if not set(self.attention_layers) <= set(range(self.depth)):
            raise ValueError(
                f"attention_layers must be blocks in [0, depth = {self.depth}), got {self.attention_layers}"
            )


class LongConvLanguageModel(LanguageModel):
    """A stack of gated long convolutions, some of them replaced by attention, each with an MLP."""

    config: LongConvConfig

    def build_block(self, index: int) -> Block:
        """Norm and gated long convolution or attention, norm and MLP."""
        c = self.config
        if index in c.attention_layers:
            mixer = CausalAttention(c.dim, c.num_heads, rope_base=None)
        else:
            mixer = H3Conv(c.dim, c.kernel_length, **c.tap_options())
        return Block(c, mixer, Mlp(c.dim, c.mlp_ratio * c.dim, act=partial(nn.GELU, approximate="tanh")))

    def init_weights(self) -> None:
        """Normal projections, those of attention and MLP into the residual stream over sqrt(2 depth); biases 0. Kernels
        are as built."""
        super().init_weights()
        attention = (f"{index}.mixer.out_proj" for index in self.config.attention_layers)
        self.init_normal("mlp.fc2", *attention)


_register = partial(
    register_model,
    LongConvLanguageModel,
    task="language",
    family="longconv",
    paper=Paper("Simple Hardware-Efficient Long Convolutions for Sequence Modeling", "2302.06646", 2023),
)


@_register()
def longconv_nano():
    return LongConvConfig(
        vocab_size=256, dim=128, depth=3, kernel_length=256, kernel_dropout=0.0, kernel_init="double_exp",
        attention_layers=(1,), num_heads=4, initializer_range=0.06,
    )  # fmt: skip


@_register()
def longconv_125m():
    return LongConvConfig(dim=768, depth=12, attention_layers=(1, 8), num_heads=12)


@_register()
def longconv_355m():
    return LongConvConfig(dim=1024, depth=24, attention_layers=(1, 13), num_heads=16)


@_register()
def longconv_1_3b():
    return LongConvConfig(dim=2048, depth=24, attention_layers=(1, 13), num_heads=16)
