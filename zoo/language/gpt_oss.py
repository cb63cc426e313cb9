"""gpt-oss: experts with biases and a clamped gate, attention with sinks, every other block of it within a window.

Paper: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv 2508.10925. Sizes of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from zoo.language.moe import MoEConfig, MoELanguageModel
from zoo.layers.attention import RotaryScaling, Yarn
from zoo.layers.mlp import clamped_swiglu
from zoo.layers.moe import MoE
from zoo.layers.options import require_above
from zoo.registry import Paper, register_model

YARN = Yarn(32.0, length=4096, truncate=False)  # of the published checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class GptOssConfig(MoEConfig):
    """Options of gpt-oss; the experts have the clamped gate, dense blocks between (``expert_every``) ``activation``."""

    vocab_size: int = 201088
    swiglu_alpha: float = 1.702
    """Slope of the sigmoid in an expert's gate."""
    swiglu_limit: float = 7.0
    """Bound of an expert's gate from above, and of its other half to both sides."""
    attention_sinks: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    head_dim: int | None = 64
    rope_base: float = 150000.0
    rope_scaling: RotaryScaling | None = YARN
    normalize: bool | None = True
    joint_balance: bool = True
    balance_weight: float = 0.9
    z_weight: float = 0.0
    tie_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_above(0, swiglu_alpha=self.swiglu_alpha, swiglu_limit=self.swiglu_limit)


class GptOssLanguageModel(MoELanguageModel):
    """A stack of attention with sinks and experts with biases."""

    config: GptOssConfig

    def build_experts(self, **options: Any) -> MoE:
        """Experts with biases and the clamped gate, and a router with biases."""
        c = self.config
        glu = partial(clamped_swiglu, alpha=c.swiglu_alpha, limit=c.swiglu_limit)
        return super().build_experts(bias=True, glu=glu, **options)


_register = partial(
    register_model,
    GptOssLanguageModel,
    task="language",
    family="gpt_oss",
    paper=Paper("gpt-oss-120b & gpt-oss-20b Model Card", "2508.10925", 2025),
)
_config = partial(
    GptOssConfig, dim=2880, mlp_dim=2880, num_heads=64, num_kv_heads=8, top_k=4, window=128, context_length=131072
)


@_register()
def gpt_oss_nano():
    return GptOssConfig(
        vocab_size=256, dim=96, depth=2, num_heads=6, num_kv_heads=2, head_dim=16, mlp_dim=96, num_experts=6, top_k=2,
        window=16, full_layers=(1,), rope_base=1e4, rope_scaling=Yarn(4.0, 128, truncate=False), balance_weight=0.01,
        tie_embeddings=True,
    )  # fmt: skip


@_register()
def gpt_oss_20b():
    return _config(depth=24, num_experts=32, full_layers=tuple(range(1, 24, 2)))


@_register()
def gpt_oss_120b():
    return _config(depth=36, num_experts=128, full_layers=tuple(range(1, 36, 2)))
