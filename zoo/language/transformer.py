"""The measuring stick: a pre-norm transformer with rotary positions, grouped queries and SwiGLU.

Paper: Touvron et al., "LLaMA", arXiv 2302.13971; grouped queries from arXiv 2305.13245. The sizes are this library's
own, chosen to match the parameter counts of the other families.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.config import require_positive
from zoo.language.base import Block, LanguageConfig, LanguageModel
from zoo.layers import CausalAttention, SwiGLU
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(LanguageConfig):
    """Options of the transformer."""

    vocab_size: int = 50280
    num_heads: int
    """Query heads."""
    num_kv_heads: int | None = None
    """Key and value heads, num_heads when None."""
    mlp_dim: int
    """Hidden width of the SwiGLU."""
    rope_base: float = 10000.0
    """Wavelength base of the rotary positions."""
    residual_in_fp32: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "num_kv_heads", "mlp_dim")


class TransformerLanguageModel(LanguageModel):
    """A stack of attention and SwiGLU blocks."""

    config: TransformerConfig

    def build_block(self, index: int) -> Block:
        """Norm and causal attention, norm and SwiGLU."""
        c = self.config
        return Block(c, CausalAttention(c.dim, c.num_heads, c.num_kv_heads, c.rope_base), SwiGLU(c.dim, c.mlp_dim))


_register = partial(
    register_model,
    TransformerLanguageModel,
    task="language",
    family="transformer",
    paper=Paper("LLaMA: Open and Efficient Foundation Language Models", "2302.13971", 2023),
)


@_register()
def transformer_nano():
    return TransformerConfig(vocab_size=256, dim=128, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=384)


@_register()
def transformer_130m():
    return TransformerConfig(dim=768, depth=12, num_heads=12, num_kv_heads=4, mlp_dim=2560)


@_register()
def transformer_350m():
    return TransformerConfig(dim=1024, depth=24, num_heads=16, num_kv_heads=4, mlp_dim=3072)


@_register()
def transformer_1_3b():
    return TransformerConfig(dim=2048, depth=24, num_heads=32, num_kv_heads=8, mlp_dim=6144)
