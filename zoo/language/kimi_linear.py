"""Kimi Linear: the delta rule with a decay a key channel in three of four blocks, latent attention without positions in
the fourth, experts in all but the first.

Paper: Kimi Team, "Kimi Linear", arXiv 2510.26692. Size of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

from torch import nn

from zoo.config import require_positive
from zoo.language.hybrid import PatternConfig, PatternLanguageModel
from zoo.layers import KimiDeltaAttention, LatentAttention, Mixer
from zoo.layers.moe.deepseek import DeepSeekMoE
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class KimiLinearConfig(PatternConfig):
    """Options of Kimi Linear; in ``mixers`` "M" is the delta rule."""

    letters: ClassVar[dict[str, str]] = {"mixers": "M*", "mlps": "-E"}

    vocab_size: int = 163840
    mixers: str = "MMM*"
    delta_heads: int = 32
    """Heads of the delta rule."""
    delta_head_dim: int = 128
    """Width of a head of its queries, keys and values."""
    d_conv: int = 4
    """Taps of its convolutions."""
    chunk_size: int = 64
    """Steps a chunk of its parallel form; it changes the speed, not the result."""
    num_heads: int
    """Heads of the attention."""
    kv_lora_rank: int = 512
    """Width of the latent vector of keys and values, which is what the cache holds."""
    q_lora_rank: int | None = None
    """Width of the latent vector of the queries; None: queries come straight from the input."""
    qk_nope_head_dim: int = 128
    """Channels of a head's queries and keys that are projected from the latent vector."""
    qk_rope_head_dim: int = 64
    """Channels of a head's queries for the one key that all heads share; no positions turn them."""
    v_head_dim: int = 128
    """Channels of a head's values."""
    expert_dim: int = 1024
    """Hidden width of an expert."""
    num_experts: int = 256
    """Routed experts of a layer."""
    top_k: int = 8
    """Routed experts a token takes."""
    num_shared: int = 1
    """Experts that every token takes, as one of their joint width."""
    normalize: bool = True
    """The weights of a token's experts sum to 1."""
    routed_scale: float = 1.0
    """Factor of the routed experts' sum."""
    num_groups: int = 1
    """Groups the experts form."""
    top_groups: int = 1
    """Groups a token's experts may come from."""
    bias_speed: float = 1e-3
    """Step of the selection bias that balances without a loss."""
    balance_weight: float = 0.0
    """Weight of the sequence-wise balance loss."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "delta_heads", "delta_head_dim", "d_conv", "chunk_size", "num_heads", "kv_lora_rank")
        require_positive(self, "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "expert_dim")
        require_positive(self, "num_experts", "top_k", "num_shared", "num_groups", "top_groups")


class KimiLinearLanguageModel(PatternLanguageModel):
    """A stack of the delta rule or latent attention, with SwiGLU or experts."""

    config: KimiLinearConfig

    def build_ssm(self) -> Mixer:
        """The delta rule."""
        c = self.config
        return KimiDeltaAttention(
            c.dim, c.delta_heads, c.delta_head_dim, d_conv=c.d_conv, chunk_size=c.chunk_size, norm_eps=c.norm_eps
        )

    def build_attention(self) -> Mixer:
        """Latent attention without positions, which the delta rule knows."""
        c = self.config
        return LatentAttention(
            c.dim, c.num_heads, kv_lora_rank=c.kv_lora_rank, qk_nope_head_dim=c.qk_nope_head_dim,
            qk_rope_head_dim=c.qk_rope_head_dim, v_head_dim=c.v_head_dim, q_lora_rank=c.q_lora_rank, rope_base=None,
        )  # fmt: skip

    def build_experts(self) -> nn.Module:
        """Experts as in DeepSeek-V3."""
        c = self.config
        return DeepSeekMoE(
            c.dim, c.expert_dim, c.num_experts, c.top_k, num_shared=c.num_shared, normalize=c.normalize,
            scale=c.routed_scale, num_groups=c.num_groups, top_groups=c.top_groups, bias_speed=c.bias_speed,
            balance_weight=c.balance_weight,
        )  # fmt: skip


_register = partial(
    register_model,
    KimiLinearLanguageModel,
    task="language",
    family="kimi_linear",
    paper=Paper("Kimi Linear: An Expressive, Efficient Attention Architecture", "2510.26692", 2025),
)


@_register()
def kimi_linear_nano():
    return KimiLinearConfig(
        vocab_size=256, dim=64, depth=3, mixers="MM*", mlps="-EE", mlp_dim=128, delta_heads=2, delta_head_dim=32,
        num_heads=2, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, expert_dim=32,
        num_experts=4, top_k=2, balance_weight=1e-4,
    )  # fmt: skip


@_register()
def kimi_linear_48b_a3b():
    return KimiLinearConfig(
        dim=2304, depth=27, mixers="MMM*" * 6 + "MM*", mlps="-" + "E" * 26, mlp_dim=9216, num_heads=32,
        routed_scale=2.446,
    )  # fmt: skip
