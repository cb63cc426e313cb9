"""MemoryFormer: a transformer whose matrices are tables, looked up by the signs of what they would multiply.

Paper: Ding et al., "MemoryFormer: Minimize Transformer Computation by Removing Fully-Connected Layers", arXiv
2411.12992. ``memoryformer_{tiny,small,base}`` have the widths and depths of its table 1, which are those of Pythia-70M,
160M and 410M, tables of 8 bits, and Pythia's heads and 50,304 words; no weights were released. The authors' code has a
file of small with six blocks and eight heads: ``create_model("memoryformer_small", depth=6, num_heads=8)``. The paper
has no large: ``memoryformer_large`` is ours, by its rule, from Pythia-1B.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers.memory import HashedAttention, MemoryBlock
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryFormerConfig(LanguageConfig):
    """Options of MemoryFormer."""

    vocab_size: int = 50304
    num_heads: int
    """Heads of the attention."""
    bits: int = 8
    """Channels whose signs index a table, of queries, keys and values and of the first layer of a memory block."""
    extra_bits: int = 2
    """Channels more of a table of the second."""
    lookup_weight: str = "probability"
    """Factor of a row: "probability" of its signs, as the paper says, or "scaled" by the size of the channels besides,
    as the authors' code computes."""
    temperature: float = 1.0
    """What the channels are divided by before their factor."""
    rotary_fraction: float = 0.25
    """Part of a head's channels that the positions turn."""
    tie_embeddings: bool = False
    residual_in_fp32: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "bits", "extra_bits")
        if not 0 < self.rotary_fraction <= 1:
            raise ValueError(f"rotary_fraction must be in (0, 1], got {self.rotary_fraction}")


class MemoryFormerLanguageModel(LanguageModel):
    """A stack of attention and memory blocks without matrices; the head has the one that is left."""

    config: MemoryFormerConfig

    def build_block(self, index: int) -> Block:
        """Norm and attention, norm and memory block."""
        c = self.config
        options: dict[str, Any] = {"weight": c.lookup_weight, "temperature": c.temperature}
        attention = HashedAttention(c.dim, c.num_heads, c.bits, c.rotary_fraction, **options)
        return Block(c, attention, MemoryBlock(c.dim, c.bits, c.extra_bits, **options))


_register = partial(
    register_model,
    MemoryFormerLanguageModel,
    task="language",
    family="memoryformer",
    paper=Paper(
        "MemoryFormer: Minimize Transformer Computation by Removing Fully-Connected Layers", "2411.12992", 2024
    ),
)


@_register()
def memoryformer_nano():
    return MemoryFormerConfig(
        vocab_size=256, dim=64, depth=3, num_heads=4, bits=4, tie_embeddings=True, initializer_range=0.1
    )


@_register()
def memoryformer_tiny():
    return MemoryFormerConfig(dim=512, depth=6, num_heads=8)


@_register()
def memoryformer_small():
    return MemoryFormerConfig(dim=768, depth=12, num_heads=12)


@_register()
def memoryformer_base():
    return MemoryFormerConfig(dim=1024, depth=24, num_heads=16)


@_register()
def memoryformer_large():
    return MemoryFormerConfig(dim=2048, depth=16, num_heads=8)
