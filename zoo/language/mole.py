"""Mixture of latent experts (MoLAE): small experts behind projections that groups of them share.

Paper: Liu et al., "MoLAE: Mixture of Latent Experts for Parameter-Efficient Language Models", arXiv 2503.23100 (whose
first version calls it MoLE). The sizes here are published models in latent form, as ``zoo.latent_experts`` makes them:
groups of eight experts, and a latent space as wide as an expert.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from zoo.config import require_positive
from zoo.language.moe import MoEConfig, MoELanguageModel, olmoe_1b_7b, qwen3_30b_a3b
from zoo.layers.moe import MoE
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoLEConfig(MoEConfig):
    """Options of the transformer with latent experts."""

    latent_rank: int
    """Width of the latent spaces into the experts."""
    group_size: int | None = None
    """Neighbouring experts that share a latent space; None for all."""
    out_rank: int | None = None
    """Width of the latent spaces out of the experts; None for matrices of their own, as the paper has them."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "latent_rank", "group_size", "out_rank")


class MoLELanguageModel(MoELanguageModel):
    """A stack of attention and latent experts."""

    config: MoLEConfig

    def build_experts(self, **options: Any) -> MoE:
        """Experts in latent form."""
        c, experts = self.config, super().build_experts(**options)
        experts.replace_matrices(experts.latent_matrices(c.latent_rank, c.group_size, c.out_rank))
        return experts


_register = partial(
    register_model,
    MoLELanguageModel,
    task="language",
    family="mole",
    paper=Paper("MoLAE: Mixture of Latent Experts for Parameter-Efficient Language Models", "2503.23100", 2025),
)


def _latent(source: MoEConfig, **options: Any) -> MoLEConfig:
    """A model in latent form."""
    return MoLEConfig(**vars(source), **options)


@_register()
def mole_nano():
    return MoLEConfig(
        vocab_size=256, dim=96, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=48, num_experts=8, top_k=2,
        latent_rank=48, group_size=4,
    )  # fmt: skip


@_register()
def mole_olmoe_1b_7b():
    return _latent(olmoe_1b_7b(), latent_rank=1024, group_size=8)


@_register()
def mole_qwen3_30b_a3b():
    return _latent(qwen3_30b_a3b(), latent_rank=768, group_size=8)
