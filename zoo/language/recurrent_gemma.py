"""RecurrentGemma, the published Griffin: two gated linear recurrences, then attention to a window, over and over.

Papers: Botev et al., "RecurrentGemma", arXiv 2404.07839; De et al., "Griffin", arXiv 2402.19427. Sizes of the published
checkpoints.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import GriffinRecurrence, Mixer, OffsetRMSNorm, SlidingWindowAttention, SwiGLU
from zoo.layers.attention import Rotary
from zoo.layers.options import require_above
from zoo.registry import Paper, register_model

KINDS = ("recurrent", "attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentGemmaConfig(LanguageConfig):
    """Options of RecurrentGemma."""

    vocab_size: int = 256000
    pattern: tuple[str, ...] = ("recurrent", "recurrent", "attention")
    """Mixers of the first blocks, repeated over the depth."""
    num_heads: int
    """Query heads, and blocks of the recurrence's gates."""
    num_kv_heads: int = 1
    """Key and value heads."""
    window: int = 2048
    """Keys a query sees, its own position included."""
    rope_base: float = 10000.0
    """Wavelength base of the rotary positions."""
    rotary_fraction: float = 0.5
    """Part of a head's channels that the positions turn."""
    recurrence_dim: int
    """Channels of the recurrence."""
    d_conv: int = 4
    """Taps of the convolution before the recurrence."""
    mlp_dim: int
    """Hidden width of the GeGLU."""
    attention_bias: bool = False
    """Queries, keys and values have biases."""
    logit_softcap: float = 30.0
    """c, where the logits z become c tanh(z / c)."""
    norm_eps: float = 1e-6
    residual_in_fp32: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "num_kv_heads", "window", "recurrence_dim", "d_conv", "mlp_dim")
        require_above(0, rotary_fraction=self.rotary_fraction, logit_softcap=self.logit_softcap)
        if not self.pattern or not set(self.pattern) <= set(KINDS):
            raise ValueError(f"pattern must name mixers out of {KINDS}, got {self.pattern}")


class RecurrentGemmaLanguageModel(LanguageModel):
    """A stack of recurrences and local attention, each with GeGLU; the embedding is multiplied by sqrt(dim)."""

    config: RecurrentGemmaConfig

    def build_block(self, index: int) -> Block:
        """Norm and mixer, norm and GeGLU."""
        c = self.config
        mixer = self.build_mixer(c.pattern[index % len(c.pattern)])
        mlp = SwiGLU(c.dim, c.mlp_dim, partial(F.gelu, approximate="tanh"), bias=True)
        return Block(c, mixer, mlp, OffsetRMSNorm)

    def build_mixer(self, kind: str) -> Mixer:
        """A mixer of one of ``KINDS``."""
        c = self.config
        if kind == "recurrent":
            return GriffinRecurrence(c.dim, c.num_heads, c.recurrence_dim, c.d_conv)
        rotary = Rotary(int(c.dim // c.num_heads * c.rotary_fraction), c.rope_base)
        return SlidingWindowAttention(
            c.dim, c.num_heads, c.window, c.num_kv_heads, rotary=rotary, bias=c.attention_bias, out_bias=True
        )

    def build_norm(self) -> OffsetRMSNorm:
        """The norm before the head."""
        return OffsetRMSNorm(self.config.dim, self.config.norm_eps)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings times sqrt(dim), rounded to bfloat16 as in the published code."""
        x = self.embedding(tokens)
        return x * torch.tensor(self.config.dim**0.5, dtype=torch.bfloat16).to(x)

    @property
    def softcap(self) -> float:
        """Bound of the logits by a tanh."""
        return self.config.logit_softcap


_register = partial(
    register_model,
    RecurrentGemmaLanguageModel,
    task="language",
    family="recurrent_gemma",
    paper=Paper("RecurrentGemma: Moving Past Transformers for Efficient Open Language Models", "2404.07839", 2024),
)


@_register()
def recurrent_gemma_nano():
    return RecurrentGemmaConfig(
        vocab_size=256, dim=128, depth=3, num_heads=4, window=64, recurrence_dim=128, mlp_dim=320
    )


@_register()
def recurrentgemma_2b():
    return RecurrentGemmaConfig(dim=2560, depth=26, num_heads=10, recurrence_dim=2560, mlp_dim=7680)


@_register()
def recurrentgemma_9b():
    return RecurrentGemmaConfig(dim=4096, depth=38, num_heads=16, recurrence_dim=4096, mlp_dim=12288)
