"""Titans: a memory that learns at test time, alone or beside attention: as its context, its gate or the layer below.

Paper: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", arXiv 2501.00663. It gives sizes, and
neither widths nor chunks, windows or learned tokens: those of ``titans_*_340m`` are this library's, so deep that each
has about 340 M parameters with its 32,000 words. Every block has a SwiGLU besides, as other families here.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import Mixer, SwiGLU
from zoo.layers.memory import MemoryAsContext, MemoryAsGate, MemoryAsLayer, NeuralMemory, PersistentAttention
from zoo.layers.options import require_above
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class TitansConfig(LanguageConfig):
    """Options of all Titans."""

    vocab_size: int = 32000
    num_heads: int
    """Heads, each with a memory of its own."""
    head_dim: int | None = None
    """Channels of a head; None: dim / num_heads."""
    memory_depth: int = 2
    """Matrices of a memory."""
    memory_expand: int = 2
    """Width between them over head_dim."""
    memory_chunk: int
    """Steps whose gradients are taken at the same weights; in MAC, also those that attention sees."""
    max_rate: float | None = None
    """Largest step of the memory down its gradient; None: 1 / memory_chunk."""
    memory_clip: float | None = 1.0
    """Largest norm of a step's gradient by a matrix of the memory, None for no limit (as in the paper): without one
    memories of more than one matrix diverge in training."""
    d_conv: int = 4
    """Taps of the causal convolutions."""
    mlp_dim: int
    """Hidden width of SwiGLU."""
    tie_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "head_dim", "memory_depth", "memory_expand", "memory_chunk", "mlp_dim")
        for name in ("max_rate", "memory_clip"):
            if getattr(self, name) is not None:
                require_above(0, **{name: getattr(self, name)})

    @property
    def memory(self) -> dict[str, Any]:
        """Options of the memory that have their own names there."""
        return {
            "depth": self.memory_depth, "expand": self.memory_expand, "max_rate": self.max_rate,
            "clip": self.memory_clip, "d_conv": self.d_conv,
            "norm_eps": self.norm_eps,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class MACConfig(TitansConfig):
    """Options of the memory as a context."""

    num_persistent: int = 4
    """Learned keys and values that every step sees."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_persistent")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowConfig(TitansConfig):
    """Options of the memory as a gate and as a layer."""

    window: int
    """Newest steps that attention sees."""
    num_persistent: int = 4
    """Learned keys and values that every step sees."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "window", "num_persistent")


class LMMLanguageModel(LanguageModel):
    """A stack of memories, each with a SwiGLU."""

    config: Any  # one of the above

    def build_block(self, index: int) -> Block:
        """Norm and mixer, norm and SwiGLU."""
        return Block(self.config, self.build_mixer(), SwiGLU(self.config.dim, self.config.mlp_dim))

    def build_mixer(self) -> Mixer:
        """What moves information along the sequence."""
        return self.build_memory()

    def build_memory(self) -> NeuralMemory:
        """The memory."""
        c: TitansConfig = self.config
        return NeuralMemory(c.dim, c.num_heads, c.head_dim, chunk_size=c.memory_chunk, **c.memory)


class MACLanguageModel(LMMLanguageModel):
    """A stack of attentions within segments, whose context is what a memory of the earlier ones returns."""

    config: MACConfig

    def build_mixer(self) -> Mixer:
        """Attention and its memory."""
        c = self.config
        return MemoryAsContext(c.dim, c.num_heads, c.memory_chunk, c.num_persistent, c.head_dim, **c.memory)


class MAGLanguageModel(LMMLanguageModel):
    """A stack of attentions to a window, each gated by a memory."""

    config: WindowConfig
    joined: type[MemoryAsGate] = MemoryAsGate

    def build_mixer(self) -> Mixer:
        """Attention and the memory."""
        c = self.config
        attention = PersistentAttention(c.dim, c.num_heads, c.window, c.num_persistent, c.head_dim)
        return self.joined(attention, self.build_memory(), c.dim, c.norm_eps)


class MALLanguageModel(MAGLanguageModel):
    """A stack of memories, each with attention to a window above it."""

    joined = MemoryAsLayer


def _register(model: type[LanguageModel], variant: str):
    paper = Paper("Titans: Learning to Memorize at Test Time", "2501.00663", 2024)
    return register_model(model, task="language", family=f"titans_{variant}", paper=paper)


_lmm, _mac = _register(LMMLanguageModel, "lmm"), _register(MACLanguageModel, "mac")
_mag, _mal = _register(MAGLanguageModel, "mag"), _register(MALLanguageModel, "mal")
_nano: dict[str, Any] = {
    "vocab_size": 256, "dim": 64, "depth": 2, "num_heads": 2, "memory_chunk": 16, "mlp_dim": 160,
    "tie_embeddings": True,
}  # fmt: skip
_large = partial(dict, dim=1024, num_heads=8, memory_chunk=64, mlp_dim=2816)


@_lmm
def titans_lmm_nano():
    return TitansConfig(**_nano)


@_lmm
def titans_lmm_340m():
    return TitansConfig(**_large(depth=19))


@_mac
def titans_mac_nano():
    return MACConfig(**_nano)


@_mac
def titans_mac_340m():
    return MACConfig(**_large(depth=14))


@_mag
def titans_mag_nano():
    return WindowConfig(**_nano, window=32)


@_mag
def titans_mag_340m():
    return WindowConfig(**_large(depth=14), window=512)


@_mal
def titans_mal_nano():
    return WindowConfig(**_nano, window=32)


@_mal
def titans_mal_340m():
    return WindowConfig(**_large(depth=15), window=512)
