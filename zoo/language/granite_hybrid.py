"""Granite 4 hybrids: Mamba-2 in nine of ten blocks, attention in the others, experts beside a shared one, multipliers.

Source: IBM, Granite 4.0 (2025), after Bamba, with the multipliers of Granite 3. Sizes of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.block import Block
from zoo.language.hybrid import Mamba2HybridConfig, Mamba2HybridLanguageModel
from zoo.layers import CausalAttention, Mixer, State, SwiGLU
from zoo.layers.moe import MoE
from zoo.layers.options import require_above
from zoo.layers.step import Value, Writer, describes
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteHybridConfig(Mamba2HybridConfig):
    """Options of Granite 4 hybrids; ``mlp_dim`` is the width of the feed-forward layer, or of the expert that every
    token visits."""

    letters: ClassVar[dict[str, str]] = {"mixers": "M*", "mlps": "-E"}

    vocab_size: int = 100352
    mixers: str = "MMMMM*MMMM"
    expert_dim: int = 512
    """Hidden width of an expert."""
    num_experts: int = 64
    """Experts of a layer."""
    top_k: int = 6
    """Experts a token takes; their weights sum to 1."""
    balance_weight: float = 0.0
    """Weight of the load-balance loss."""
    rope_base: float | None = None
    """Wavelength base of the attention's rotary positions; None: it has no positions."""
    embedding_multiplier: float = 1.0
    """Factor of the embedding."""
    attention_multiplier: float = 1.0
    """Factor of the attention's logits, in place of head_dim^-0.5."""
    residual_multiplier: float = 1.0
    """Factor of what a mixer or feed-forward layer adds to the residual stream."""
    logits_scaling: float = 1.0
    """The logits are divided by it."""
    tie_embeddings: bool = True

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "expert_dim", "num_experts", "top_k")
        require_above(0, logits_scaling=self.logits_scaling)


class ScaledBlock(Block):
    """x + r mixer(norm(x)), then x + r mlp(mlp_norm(x)) with a constant r."""

    def __init__(self, config: GraniteHybridConfig, mixer: Mixer, mlp: nn.Module | None):
        super().__init__(config, mixer, mlp)
        self.scale = config.residual_multiplier

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim), in the dtype of the residual stream, -> the same."""
        x = x + self.scale * self.mixer(self.norm(x), state, seq_idx=seq_idx)
        return x + self.scale * self.feed_forward(self.mlp_norm(x), seq_idx)  # type: ignore[misc]


@describes(ScaledBlock)
def _scaled_block(program: Writer, block: ScaledBlock, x: Value) -> Value:
    y = program.call(block.mixer, program.call(block.norm, x))
    program.accumulate(x, y._replace(factor=y.factor * block.scale))
    y = program.call(block.mlp, program.call(block.mlp_norm, x))  # type: ignore[arg-type]
    program.accumulate(x, y._replace(factor=y.factor * block.scale))
    return x


class GraniteHybridLanguageModel(Mamba2HybridLanguageModel):
    """A stack of Mamba-2 or attention, with SwiGLU or experts."""

    config: GraniteHybridConfig

    def build_block(self, index: int) -> Block:
        """As in every hybrid, with the multiplier of the residual stream."""
        block = super().build_block(index)
        return ScaledBlock(self.config, block.mixer, block.mlp)

    def build_attention(self) -> Mixer:
        """Attention with its own scale."""
        c = self.config
        return CausalAttention(c.dim, c.num_heads, c.num_kv_heads, c.rope_base, c.head_dim, c.attention_multiplier)

    def build_experts(self) -> nn.Module:
        """SwiGLU experts, and one that every token visits."""
        c = self.config
        return MoE(
            c.dim, c.expert_dim, c.num_experts, c.top_k, normalize=True, balance_weight=c.balance_weight,
            shared=SwiGLU(c.dim, c.mlp_dim),
        )  # fmt: skip

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings times their multiplier."""
        return self.embedding(tokens) * self.config.embedding_multiplier

    @property
    def norm_factor(self) -> float:
        """Of the scale of the logits."""
        return 1 / self.config.logits_scaling


_register = partial(
    register_model,
    GraniteHybridLanguageModel,
    task="language",
    family="granite_hybrid",
    paper=Paper("Transformers are SSMs: Generalized Models and Efficient Algorithms", "2405.21060", 2024),
)


@_register()
def granite_hybrid_nano():
    return GraniteHybridConfig(
        vocab_size=256, dim=96, depth=3, mixers="MM*", mlps="E", num_heads=4, num_kv_heads=2, mlp_dim=128, ssm_dim=192,
        ssm_head_dim=32, d_state=32, expert_dim=32, num_experts=8, top_k=6, balance_weight=0.01,
        attention_multiplier=0.2,
    )  # fmt: skip


@_register()
def granite4_h_micro():
    return GraniteHybridConfig(
        dim=2048, depth=40, num_heads=32, num_kv_heads=8, mlp_dim=8192, ssm_dim=4096, embedding_multiplier=12.0,
        attention_multiplier=0.015625, residual_multiplier=0.22, logits_scaling=8.0,
    )  # fmt: skip


@_register()
def granite4_h_tiny():
    return GraniteHybridConfig(
        dim=1536, depth=40, mlps="E", num_heads=12, num_kv_heads=4, mlp_dim=1024, ssm_dim=3072,
        embedding_multiplier=12.0, attention_multiplier=0.0078125, residual_multiplier=0.22, logits_scaling=6.0,
    )  # fmt: skip


@_register()
def granite4_h_small():
    return GraniteHybridConfig(
        dim=4096, depth=40, mlps="E", num_heads=32, num_kv_heads=8, mlp_dim=1536, ssm_dim=8192, expert_dim=768,
        num_experts=72, top_k=10, embedding_multiplier=12.0, attention_multiplier=0.0078125, residual_multiplier=0.22,
        logits_scaling=16.0,
    )  # fmt: skip
