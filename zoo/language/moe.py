"""The mixture-of-experts baseline: the transformer with routed experts in place of its feed-forward layers.

Papers: Jiang et al., "Mixtral of Experts", arXiv 2401.04088 (softmax, top-2, renormalised weights: the registered
sizes); Fedus et al., "Switch Transformers", arXiv 2101.03961 (``top_k=1, capacity_factor=1.25, expert_every=2``).
Mixtral's sizes are those of the published checkpoints, the others this library's own.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import cast

import torch
from torch import Tensor

from zoo.config import require_positive
from zoo.kernels.moe import load_balance_loss
from zoo.language.base import Block, LanguageModel
from zoo.language.transformer import DecoderConfig
from zoo.layers import CausalAttention, ModelState, SwiGLU
from zoo.layers.moe import MoE
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEConfig(DecoderConfig):
    """Options of the transformer with experts; ``mlp_dim`` is the width of one expert and of the dense layers
    between."""

    head_dim: int | None = None
    """Width of an attention head, dim / num_heads when None."""
    num_experts: int = 8
    """Experts of a layer."""
    top_k: int = 2
    """Experts a token takes."""
    expert_every: int = 1
    """Of each group of so many blocks the last has experts, the others are dense."""
    normalize: bool | None = None
    """The weights of a token's experts sum to 1; None: where top_k > 1."""
    capacity_factor: float | None = None
    """Limit of the tokens an expert takes in training mode, over their even share; None: no limit. Evaluation has
    none, so that decoding equals the parallel form."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss."""
    z_weight: float = 0.001
    """Weight of the router z-loss."""
    joint_balance: bool = False
    """One load-balance loss over the tokens of all layers (transformers' Mixtral) in place of the sum of one a
    layer (Switch)."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_experts", "top_k", "expert_every", "head_dim")
        if self.expert_every > self.depth:
            raise ValueError(
                f"expert_every must be at most depth, or no block has experts: got {self.expert_every}, "
                f"depth {self.depth}"
            )


class MoELanguageModel(LanguageModel):
    """A stack of attention and feed-forward blocks, all or some of them with experts."""

    config: MoEConfig

    def build_block(self, index: int) -> Block:
        """Norm and causal attention, norm and experts or SwiGLU."""
        c = self.config
        mixer = CausalAttention(c.dim, c.num_heads, c.num_kv_heads, c.rope_base, c.head_dim)
        if (index + 1) % c.expert_every:
            return Block(c, mixer, SwiGLU(c.dim, c.mlp_dim))
        balance_weight = 0.0 if c.joint_balance else c.balance_weight
        experts = MoE(
            c.dim, c.mlp_dim, c.num_experts, c.top_k, normalize=c.normalize, capacity_factor=c.capacity_factor,
            balance_weight=balance_weight, z_weight=c.z_weight,
        )  # fmt: skip
        return Block(c, mixer, experts)

    def forward_blocks(self, x: Tensor, state: ModelState | None, seq_idx: Tensor | None) -> Tensor:
        """The residual stream (B, T, dim) through all blocks; the joint load-balance loss is the last layer's."""
        x = super().forward_blocks(x, state, seq_idx)
        layers = cast("list[MoE]", self.experts)
        routed = [layer.routing for layer in layers if layer.routing is not None]
        if self.config.joint_balance and self.config.balance_weight and routed:
            scores, experts = (torch.cat([getattr(r, name) for r in routed]) for name in ("scores", "experts"))
            mask = None if seq_idx is None else (seq_idx >= 0).flatten().repeat(len(routed))
            loss = self.config.balance_weight * load_balance_loss(scores, experts, mask=mask)
            layers[-1].auxiliary_losses["load_balance"] = loss
        return x


_register = partial(
    register_model,
    MoELanguageModel,
    task="language",
    family="moe",
    paper=Paper("Mixtral of Experts", "2401.04088", 2024),
)


@_register()
def moe_nano():
    return MoEConfig(vocab_size=256, dim=128, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=160, num_experts=4, top_k=2)


@_register()
def moe_8x130m():
    return MoEConfig(dim=768, depth=12, num_heads=12, num_kv_heads=4, mlp_dim=2560, num_experts=8, top_k=2)


_mixtral = partial(
    MoEConfig, vocab_size=32000, num_kv_heads=8, rope_base=1e6, tie_embeddings=False, joint_balance=True,
    balance_weight=0.02, z_weight=0.0,
)  # fmt: skip


@_register()
def mixtral_8x7b():
    return _mixtral(dim=4096, depth=32, num_heads=32, mlp_dim=14336)


@_register()
def mixtral_8x22b():
    return _mixtral(dim=6144, depth=56, num_heads=48, mlp_dim=16384)
