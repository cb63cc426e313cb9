"""The mixture-of-experts baseline: the transformer with routed experts in place of its feed-forward layers.

Papers: Jiang et al., "Mixtral of Experts", arXiv 2401.04088 (softmax, top-2, renormalised weights: the registered
sizes); Fedus et al., "Switch Transformers", arXiv 2101.03961 (``top_k=1, capacity_factor=1.25, expert_every=2``);
Muennighoff et al., "OLMoE", arXiv 2409.02060, and Qwen Team, "Qwen3 Technical Report", arXiv 2505.09388 (small experts,
norms of queries and keys). Their sizes are those of the published checkpoints, ``moe_8x130m`` is this library's own.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.kernels.moe import load_balance_loss
from zoo.language.base import LanguageModel
from zoo.language.transformer import ACTIVATIONS, TransformerConfig, TransformerLanguageModel
from zoo.layers import ModelState
from zoo.layers.moe import MoE
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEConfig(TransformerConfig):
    """Options of the transformer with experts; ``mlp_dim`` is the width of one expert and of the dense layers
    between."""

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
        require_positive(self, "num_experts", "top_k", "expert_every")
        if self.expert_every > self.depth:
            raise ValueError(
                f"expert_every must be at most depth, or no block has experts: got {self.expert_every}, "
                f"depth {self.depth}"
            )


class JointlyBalanced(LanguageModel):
    """A model with one load-balance loss over the tokens of all its layers with experts."""

    @property
    @abstractmethod
    def joint_balance(self) -> float:
        """Weight of that loss; 0 for none."""

    def forward_blocks(self, x: Tensor, state: ModelState | None, seq_idx: Tensor | None) -> Tensor:
        """The residual stream (B, T, dim) through all blocks; the joint load-balance loss is the last layer's."""
        x = super().forward_blocks(x, state, seq_idx)
        layers = [layer for layer in self.experts if isinstance(layer, MoE)]
        routed = [layer.routing for layer in layers if layer.routing is not None]
        if self.joint_balance and routed:
            scores, experts = (torch.cat([getattr(r, name) for r in routed]) for name in ("scores", "experts"))
            mask = None if seq_idx is None else (seq_idx >= 0).flatten().repeat(len(routed))
            loss = self.joint_balance * load_balance_loss(scores, experts, mask=mask)
            layers[-1].auxiliary_losses["load_balance"] = loss
        return x


class MoELanguageModel(JointlyBalanced, TransformerLanguageModel):
    """A stack of attention and feed-forward blocks, all or some of them with experts."""

    config: MoEConfig

    def build_mlp(self, index: int) -> nn.Module:
        """Experts, or the transformer's feed-forward layer."""
        return super().build_mlp(index) if (index + 1) % self.config.expert_every else self.build_experts()

    def build_experts(self, **options: Any) -> MoE:
        """Experts as the configuration has them, and with the further options of ``MoE``."""
        c = self.config
        return MoE(
            c.dim, c.mlp_dim, c.num_experts, c.top_k, normalize=c.normalize, act=ACTIVATIONS[c.activation],
            capacity_factor=c.capacity_factor, balance_weight=0.0 if c.joint_balance else c.balance_weight,
            z_weight=c.z_weight, **options,
        )  # fmt: skip

    @property
    def joint_balance(self) -> float:
        """Weight of a load-balance loss over all layers."""
        return self.config.balance_weight if self.config.joint_balance else 0.0


_register = partial(
    register_model,
    MoELanguageModel,
    task="language",
    family="moe",
)
_MIXTRAL = Paper("Mixtral of Experts", "2401.04088", 2024)
_OLMOE = Paper("OLMoE: Open Mixture-of-Experts Language Models", "2409.02060", 2024)
_QWEN3 = Paper("Qwen3 Technical Report", "2505.09388", 2025)


@_register(paper=_MIXTRAL)
def moe_nano():
    return MoEConfig(vocab_size=256, dim=128, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=160, num_experts=4, top_k=2)


@_register(paper=_MIXTRAL)
def moe_8x130m():
    return MoEConfig(dim=768, depth=12, num_heads=12, num_kv_heads=4, mlp_dim=2560, num_experts=8, top_k=2)


_published = partial(MoEConfig, tie_embeddings=False, joint_balance=True, z_weight=0.0)
_mixtral = partial(_published, vocab_size=32000, num_kv_heads=8, rope_base=1e6, balance_weight=0.02)
_qwen3 = partial(
    _published, vocab_size=151936, num_kv_heads=4, head_dim=128, qk_norm="head", num_experts=128, top_k=8,
    normalize=True, rope_base=1e6, norm_eps=1e-6, balance_weight=0.001,
)  # fmt: skip


@_register(paper=_MIXTRAL)
def mixtral_8x7b():
    return _mixtral(dim=4096, depth=32, num_heads=32, mlp_dim=14336)


@_register(paper=_MIXTRAL)
def mixtral_8x22b():
    return _mixtral(dim=6144, depth=56, num_heads=48, mlp_dim=16384)


@_register(paper=_OLMOE)
def olmoe_1b_7b():
    return _published(
        vocab_size=50304, dim=2048, depth=16, num_heads=16, num_kv_heads=16, head_dim=128, mlp_dim=1024,
        qk_norm="joint", num_experts=64, top_k=8, normalize=False, balance_weight=0.01,
    )  # fmt: skip


@_register(paper=_QWEN3)
def qwen3_30b_a3b():
    return _qwen3(dim=2048, depth=48, num_heads=32, mlp_dim=768)


@_register(paper=_QWEN3)
def qwen3_235b_a22b():
    return _qwen3(dim=4096, depth=94, num_heads=64, mlp_dim=1536)
