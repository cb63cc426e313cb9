"""BASED: Taylor linear attention, small sliding windows and gated short convolutions, interleaved.

Paper: Arora et al., arXiv 2402.18668. Sizes, order of the layers and vocabulary of the authors' checkpoints (the Pile),
those of their attention baseline among them; their Mamba baselines are ``based_mamba_*``, of the family "mamba".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import Mixer, SwiGLU
from zoo.layers.attention import CausalAttention, Rotary, SlidingWindowAttention, TaylorAttention
from zoo.layers.conv import GatedConv
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class BasedConfig(LanguageConfig):
    """Options of BASED; ``initializer_range`` is that of the embedding and of all projections."""

    vocab_size: int = 50264
    pattern: str
    """Mixers in order, one letter each, repeated up to ``depth`` blocks: "t" Taylor linear attention, "s"
    sliding-window attention, "c" gated convolution, "a" attention."""
    num_heads: int = 16
    """Heads of all attentions."""
    feature_dim: int = 16
    """Width of a head's queries and keys in the Taylor attention."""
    window: int = 129
    """Keys a query of the sliding window sees, itself included (the authors' ``window_size: 256`` is 129: 128 keys
    and the query's own)."""
    kernel_size: int = 3
    """Taps of the gated convolution."""
    expand: int = 2
    """Inner width of the gated convolution over dim."""
    rope_base: float = 10000.0
    """Wavelength base of the rotary positions of "s" and "a"."""
    rotary_dim: int | None = None
    """Channels of a head that turn in the attention "a"; None: all."""
    mlp_dim: int
    """Hidden width of the SwiGLU."""
    chunk_size: int = 64
    """Steps a chunk of the Taylor attention; it changes the speed, not the result."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "feature_dim", "window", "kernel_size", "expand", "mlp_dim", "chunk_size")
        require_positive(self, "rotary_dim")
        if not self.pattern or set(self.pattern) - set("acst"):
            raise ValueError(
                "pattern must be letters 't' (Taylor attention), 's' (sliding window), 'c' (convolution) and 'a' "
                f"(attention), such as 'ctscc', got {self.pattern!r}"
            )


class BasedLanguageModel(LanguageModel):
    """A stack of blocks whose mixers follow the pattern, each with SwiGLU."""

    config: BasedConfig

    def build_block(self, index: int) -> Block:
        """Norm and the pattern's mixer, norm and SwiGLU."""
        c = self.config
        builders: dict[str, Callable[[], Mixer]] = {
            "t": partial(TaylorAttention, c.dim, c.num_heads, c.feature_dim, chunk_size=c.chunk_size),
            "s": partial(SlidingWindowAttention, c.dim, c.num_heads, c.window, rope_base=c.rope_base),
            "c": partial(GatedConv, c.dim, c.kernel_size, c.expand),
            "a": self.build_attention,
        }
        return Block(c, builders[c.pattern[index % len(c.pattern)]](), SwiGLU(c.dim, c.mlp_dim))

    def build_attention(self) -> CausalAttention:
        """Over all of the past, a part of each head turned by its position."""
        c = self.config
        return CausalAttention(c.dim, c.num_heads, rotary=Rotary(c.rotary_dim or c.dim // c.num_heads, c.rope_base))

    def init_weights(self) -> None:
        """The authors' initial values: all projections normal, those into the residual stream over sqrt(2 depth)."""
        super().init_weights()
        self.init_normal("mixer.out_proj", "mlp.w2")


_register = partial(
    register_model,
    BasedLanguageModel,
    task="language",
    family="based",
    paper=Paper("Simple linear attention language models balance the recall-throughput tradeoff", "2402.18668", 2024),
)


@_register()
def based_nano():
    return BasedConfig(vocab_size=256, dim=128, depth=4, pattern="ctsc", num_heads=4, window=32, mlp_dim=256)


@_register()
def based_360m():
    return BasedConfig(dim=1024, depth=27, pattern="ctscc" * 5 + "cc", mlp_dim=2048)


@_register()
def based_1_3b():
    return BasedConfig(dim=1792, depth=36, pattern="ctscc" * 4 + "ctsccc" * 2 + "ctsc", mlp_dim=3584)


@_register()
def based_attention_360m():
    return BasedConfig(vocab_size=50272, dim=1024, depth=24, pattern="a", mlp_dim=2816, rotary_dim=32)


@_register()
def based_attention_1_3b():
    """Half of a head's 70 channels turn, 35, which the authors' code makes 18 pairs at the rates 10000^(-2i / 35)."""
    return BasedConfig(
        vocab_size=50272, dim=1680, depth=36, pattern="a", num_heads=24, mlp_dim=4608, rotary_dim=36,
        rope_base=10000.0 ** (36 / 35),
    )  # fmt: skip
