"""Bamba: Mamba-2 in most blocks, attention in three of 32, SwiGLU in all.

Source: Ganti et al., "Bamba-9B", 2024 (IBM, Princeton, CMU and UIUC), built on arXiv 2405.21060. Size of the published
checkpoint.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from zoo.language.hybrid import Mamba2HybridConfig, Mamba2HybridLanguageModel
from zoo.layers import CausalAttention, Mixer
from zoo.layers.attention import Rotary
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class BambaConfig(Mamba2HybridConfig):
    """Options of Bamba."""

    rope_base: float = 10000.0
    """Wavelength base of the rotary positions of the attention, which turn half of each head."""


class BambaLanguageModel(Mamba2HybridLanguageModel):
    """A stack of Mamba-2 or attention, with SwiGLU."""

    config: BambaConfig

    def build_attention(self) -> Mixer:
        """Attention that turns half of each head."""
        c = self.config
        rotary = Rotary((c.head_dim or c.dim // c.num_heads) // 2, c.rope_base)
        return CausalAttention(c.dim, c.num_heads, c.num_kv_heads, head_dim=c.head_dim, rotary=rotary)


_register = partial(
    register_model,
    BambaLanguageModel,
    task="language",
    family="bamba",
    paper=Paper("Transformers are SSMs: Generalized Models and Efficient Algorithms", "2405.21060", 2024),
)


@_register()
def bamba_nano():
    return BambaConfig(
        vocab_size=256, dim=96, depth=4, mixers="MM*M", num_heads=4, num_kv_heads=2, mlp_dim=256, ssm_dim=192,
        ssm_head_dim=32, d_state=32, tie_embeddings=True,
    )  # fmt: skip


@_register()
def bamba_9b():
    return BambaConfig(
        vocab_size=128256, dim=4096, depth=32, mixers="MMMMMMMMM*MMMMMMMM*MMMMMMMM*MMMM", num_heads=32, num_kv_heads=8,
        mlp_dim=14336, ssm_dim=8192,
    )  # fmt: skip
