"""Jamba: Mamba with normalised dt, B and C, attention without positions in one of eight blocks, experts in every other.

Paper: Lieber et al., "Jamba", arXiv 2403.19887; Jamba-1.5: arXiv 2408.12570. Sizes of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

from torch import nn

from zoo.config import require_positive
from zoo.language.hybrid import HybridConfig, HybridLanguageModel
from zoo.layers import Mamba, Mixer, RMSNorm
from zoo.layers.moe import MoE
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class JambaConfig(HybridConfig):
    """Options of Jamba; ``mlp_dim`` is the width of one expert too."""

    letters: ClassVar[dict[str, str]] = {"mixers": "M*", "mlps": "-E"}

    vocab_size: int = 65536
    mixers: str = "MMMM*MMM"
    mlps: str = "-E"
    d_state: int = 16
    """State size of a Mamba channel."""
    d_conv: int = 4
    """Taps of Mamba's causal convolution."""
    expand: int = 2
    """Inner width of Mamba over dim."""
    dt_rank: int | None = None
    """Rank of the step sizes' projection; dim / 16 rounded up when None."""
    conv_bias: bool = True
    """The convolution has a bias."""
    bias: bool = False
    """Mamba's projections in and out have biases."""
    num_experts: int = 16
    """Experts of a layer."""
    top_k: int = 2
    """Experts a token takes; their weights are the router's probabilities."""
    balance_weight: float = 0.001
    """Weight of the load-balance loss."""
    norm_eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "d_state", "d_conv", "expand", "dt_rank", "num_experts", "top_k")


class JambaLanguageModel(HybridLanguageModel):
    """A stack of Mamba or attention with SwiGLU or experts."""

    config: JambaConfig

    def build_ssm(self) -> Mixer:
        """Mamba with norms."""
        c = self.config
        norm = partial(RMSNorm, eps=c.norm_eps)
        return Mamba(c.dim, c.d_state, c.d_conv, c.expand, c.dt_rank, c.conv_bias, c.bias, norm)

    def build_experts(self) -> nn.Module:
        """SwiGLU experts."""
        c = self.config
        return MoE(c.dim, c.mlp_dim, c.num_experts, c.top_k, normalize=False, balance_weight=c.balance_weight)


_register = partial(
    register_model,
    JambaLanguageModel,
    task="language",
    family="jamba",
    paper=Paper("Jamba: A Hybrid Transformer-Mamba Language Model", "2403.19887", 2024),
)


@_register()
def jamba_nano():
    return JambaConfig(
        vocab_size=256, dim=96, depth=4, mixers="M*", num_heads=4, num_kv_heads=2, mlp_dim=192, d_state=8,
        num_experts=4, tie_embeddings=True,
    )  # fmt: skip


@_register()
def jamba_v0_1():
    return JambaConfig(dim=4096, depth=32, num_heads=32, num_kv_heads=8, mlp_dim=14336)


_jamba_1_5 = _register(paper=Paper("Jamba-1.5: Hybrid Transformer-Mamba Models at Scale", "2408.12570", 2024))


@_jamba_1_5
def jamba_mini():
    return JambaConfig(dim=4096, depth=32, num_heads=32, num_kv_heads=8, mlp_dim=14336)


@_register()
def jamba_reasoning_3b():
    return JambaConfig(
        dim=2560, depth=28, mixers="MMMMMMM*MMMMMM", mlps="-", num_heads=20, num_kv_heads=1, mlp_dim=8192,
        tie_embeddings=True,
    )  # fmt: skip


@_jamba_1_5
def jamba_large():
    return JambaConfig(dim=8192, depth=72, num_heads=64, num_kv_heads=8, mlp_dim=24576)
