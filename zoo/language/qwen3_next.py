"""Qwen3-Next and the text models of Qwen3.5: three gated delta rules, then gated attention, over and over.

Qwen3-Next has experts and one shared expert in every block, Qwen3.5 a SwiGLU or experts. Papers: Yang et al., "Gated
Delta Networks", arXiv 2412.06464, and Qiu et al., "Gated Attention for Large Language Models", arXiv 2505.06708, are
what the authors name; sizes of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import FusedGatedDeltaNet, GatedAttention, GatedDeltaNet, Mixer, OffsetRMSNorm, SwiGLU
from zoo.layers.attention import Rotary
from zoo.layers.moe.deepseek import DeepSeekMoE
from zoo.layers.options import require_above
from zoo.layers.step import Value, Writer, describes, swiglu_step
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3NextConfig(LanguageConfig):
    """Options of Qwen3-Next and Qwen3.5."""

    vocab_size: int = 151936
    attention_every: int = 4
    """Every so manieth block has attention, the others the delta rule."""
    num_heads: int
    """Query heads of the attention."""
    num_kv_heads: int
    """Key and value heads of the attention."""
    head_dim: int = 256
    """Width of an attention head."""
    attention_bias: bool = False
    """The attention's projections have biases."""
    rope_base: float = 1e7
    """Wavelength base of the attention's rotary positions."""
    rotary_fraction: float = 0.25
    """Part of a head's channels that the positions turn."""
    delta_heads: int = 32
    """Heads of the delta rule's values."""
    delta_key_heads: int = 16
    """Heads of its queries and keys; each serves as many neighbouring heads of the values."""
    delta_key_dim: int = 128
    """Width of a head of its queries and keys."""
    delta_value_dim: int = 128
    """Width of a head of its values."""
    fused: bool = True
    """The delta rule's projections are fused as in Qwen3-Next's checkpoints; False: apart, as in Qwen3.5's."""
    d_conv: int = 4
    """Taps of its convolutions."""
    chunk_size: int = 64
    """Steps a chunk of its parallel form; it changes the speed, not the result."""
    mlp_dim: int
    """Hidden width of the SwiGLU of blocks without experts."""
    num_experts: int | None = None
    """Routed experts of a block; None for a SwiGLU in every block."""
    dense_layers: tuple[int, ...] = ()
    """Blocks (from 0) with a SwiGLU in place of experts."""
    top_k: int = 10
    """Routed experts a token takes."""
    normalize: bool = True
    """The weights of a token's experts sum to 1."""
    expert_dim: int = 512
    """Hidden width of an expert."""
    shared_dim: int = 512
    """Hidden width of the shared expert."""
    balance_weight: float = 0.0
    """Weight of the loss that keeps the experts' load even."""
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    residual_in_fp32: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "attention_every", "num_heads", "num_kv_heads", "head_dim", "delta_heads", "d_conv")
        require_positive(self, "delta_key_heads", "delta_key_dim", "delta_value_dim", "chunk_size", "mlp_dim")
        require_positive(self, "num_experts", "top_k", "expert_dim", "shared_dim")
        require_above(0, rotary_fraction=self.rotary_fraction)
        if not set(self.dense_layers) <= set(range(self.depth)):
            raise ValueError(f"dense_layers must be blocks in [0, depth = {self.depth}), got {self.dense_layers}")


class SharedExpert(SwiGLU):
    """A SwiGLU that each token opens by a gate of its own: y = sigmoid(W_g x) SwiGLU(x)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__(dim, hidden_dim)
        self.gate = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.gate(x).sigmoid() * super().forward(x)


@describes(SharedExpert)
def _shared_expert(p: Writer, module: SharedExpert, x: Value) -> Value:
    return p.scaled(swiglu_step(p, module, x), by=p.glu(p.call(module.gate, x), None, "sigmoid"))


class Qwen3NextLanguageModel(LanguageModel):
    """A stack of gated delta rules and gated attention, each with experts or SwiGLU."""

    config: Qwen3NextConfig

    def build_block(self, index: int) -> Block:
        """Norm and mixer, norm and experts or SwiGLU."""
        c = self.config
        mixer = self.build_attention() if (index + 1) % c.attention_every == 0 else self.build_delta_rule()
        if c.num_experts is None or index in c.dense_layers:
            return Block(c, mixer, SwiGLU(c.dim, c.mlp_dim), OffsetRMSNorm)
        experts = DeepSeekMoE(
            c.dim, c.expert_dim, c.num_experts, c.top_k, shared=SharedExpert(c.dim, c.shared_dim), score="softmax",
            normalize=c.normalize, bias_speed=None, balance_weight=c.balance_weight,
        )  # fmt: skip
        return Block(c, mixer, experts, OffsetRMSNorm)

    def build_attention(self) -> Mixer:
        """Gated attention with normalised queries and keys."""
        c = self.config
        q_norm, k_norm = (OffsetRMSNorm(c.head_dim, c.norm_eps) for _ in range(2))
        return GatedAttention(
            c.dim, c.num_heads, c.num_kv_heads, head_dim=c.head_dim, bias=c.attention_bias, out_bias=c.attention_bias,
            rotary=Rotary(int(c.head_dim * c.rotary_fraction), c.rope_base), q_norm=q_norm, k_norm=k_norm,
        )  # fmt: skip

    def build_delta_rule(self) -> Mixer:
        """The gated delta rule."""
        c = self.config
        layer = FusedGatedDeltaNet if c.fused else GatedDeltaNet
        return layer(
            c.dim, c.delta_heads, c.delta_key_dim, c.delta_value_dim / c.delta_key_dim, d_conv=c.d_conv,
            chunk_size=c.chunk_size, norm_eps=c.norm_eps, num_key_heads=c.delta_key_heads,
        )  # fmt: skip

    def build_norm(self) -> OffsetRMSNorm:
        """The norm before the head."""
        return OffsetRMSNorm(self.config.dim, self.config.norm_eps)


_register = partial(
    register_model,
    Qwen3NextLanguageModel,
    task="language",
    family="qwen3_next",
    paper=Paper("Gated Delta Networks: Improving Mamba2 with Delta Rule", "2412.06464", 2024),
)


@_register()
def qwen3_next_nano():
    return Qwen3NextConfig(
        vocab_size=256, dim=128, depth=3, attention_every=3, num_heads=4, num_kv_heads=2, head_dim=32, rope_base=1e4,
        delta_heads=4, delta_key_heads=2, delta_key_dim=32, delta_value_dim=32, mlp_dim=256, num_experts=8, top_k=2,
        expert_dim=64, shared_dim=64, balance_weight=0.001, tie_embeddings=True,
    )  # fmt: skip


@_register()
def qwen3_next_80b_a3b():
    return Qwen3NextConfig(dim=2048, depth=48, num_heads=16, num_kv_heads=2, mlp_dim=5120, num_experts=512)


@_register()
def qwen3_5_9b():
    return Qwen3NextConfig(
        vocab_size=248320, dim=4096, depth=32, num_heads=16, num_kv_heads=4, mlp_dim=12288, fused=False
    )


@_register()
def qwen3_5_35b_a3b():
    return Qwen3NextConfig(
        vocab_size=248320, dim=2048, depth=40, num_heads=16, num_kv_heads=2, mlp_dim=512, num_experts=256, top_k=8,
        fused=False,
    )  # fmt: skip
