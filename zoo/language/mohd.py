"""Mixture of hidden dimensions: a transformer of whose hidden dimension each token uses the groups routed to it.

Paper: Chen et al., "Mixture of Hidden-Dimensions Transformer", arXiv 2412.05644. No code was published: the formulas of
router and scaling are as others describe them, and where the mixture sits is an option. The paper's sizes are named by
the parameters of the dense models, of LLaMA's kind; their widths here are this library's.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import cast

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block
from zoo.language.transformer import DecoderConfig
from zoo.layers import CausalAttention
from zoo.layers.attention import SubDimensionAttention
from zoo.layers.moe import SubDimensionExperts, SubDimensionMLP, SubDimensionRouter
from zoo.layers.moe.sub_dimensions import OutOfLinear, SplitLinear
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoHDConfig(DecoderConfig):
    """Options of the mixture of hidden dimensions."""

    vocab_size: int = 32000
    num_groups: int = 16
    """Groups of the dimension that is mixed."""
    active_groups: int = 8
    """Groups a token uses."""
    shared_groups: int = 6
    """Of those, the groups that all tokens use."""
    placement: str = "hidden"
    """Which dimension is mixed: the "hidden" one of all projections, or the inner one of the feed-forward layers,
    "inner", beside plain attention."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss over the routed groups (this library's)."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_groups", "active_groups", "shared_groups")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement must be one of {tuple(PLACEMENTS)}, got {self.placement!r}")


class MoHDBlock(Block):
    """A block whose feed-forward layer is told of padding."""

    def feed_forward(self, x: Tensor, seq_idx: Tensor | None) -> Tensor:
        """The feed-forward layer of x (B, T, dim); padding counts in none of its losses."""
        return self.mlp(x, None if seq_idx is None else seq_idx >= 0)  # type: ignore[misc]


def _hidden(c: MoHDConfig) -> MoHDBlock:
    """Both layers on the groups of the hidden dimension, each with a router of its own."""
    routers = [
        SubDimensionRouter(c.dim, c.num_groups, c.active_groups, c.shared_groups, c.balance_weight) for _ in range(2)
    ]
    heads = {"num_kv_heads": c.num_kv_heads, "rope_base": c.rope_base}
    mixer = SubDimensionAttention(c.dim, c.num_heads, routers[0], **heads)
    return MoHDBlock(c, mixer, SubDimensionMLP(c.dim, c.mlp_dim, routers[1]))


def _inner(c: MoHDConfig) -> MoHDBlock:
    """Plain attention, and the inner channels of the feed-forward layer in groups."""
    mixer = CausalAttention(c.dim, c.num_heads, c.num_kv_heads, c.rope_base)
    groups = c.num_groups, c.active_groups, c.shared_groups, c.balance_weight
    return MoHDBlock(c, mixer, SubDimensionExperts(c.dim, c.mlp_dim, *groups))


PLACEMENTS = {"hidden": _hidden, "inner": _inner}


class MoHDLanguageModel(LanguageModel):
    """A stack of attention and SwiGLU on routed groups of channels."""

    config: MoHDConfig

    def build_block(self, index: int) -> Block:
        """Norm and attention, norm and feed-forward layer, as the placement has them."""
        return PLACEMENTS[self.config.placement](self.config)

    def init_weights(self) -> None:
        """As every language model's; what writes into the residual stream is divided as there."""
        super().init_weights()
        for module in self.blocks.modules():
            if isinstance(module, OutOfLinear):
                width = cast(nn.Linear, module.shared).in_features
                module.reset_parameters((width * 2 * self.config.depth) ** -0.5)

    def num_active_parameters(self) -> int:
        """Parameters that one token uses: all but those of the groups it does not (tied tensors once)."""
        chosen = self.config.active_groups - self.config.shared_groups
        split = [module for module in self.blocks.modules() if isinstance(module, SplitLinear)]
        return super().num_active_parameters() - sum(module.num_idle_parameters(chosen) for module in split)


_register = partial(
    register_model,
    MoHDLanguageModel,
    task="language",
    family="mohd",
    paper=Paper("Mixture of Hidden-Dimensions Transformer", "2412.05644", 2024),
)


@_register()
def mohd_nano():
    return MoHDConfig(
        vocab_size=256, dim=96, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=256, num_groups=8, active_groups=4,
        shared_groups=3,
    )  # fmt: skip


@_register()
def mohd_355m():
    return MoHDConfig(dim=1024, depth=24, num_heads=16, mlp_dim=2560, tie_embeddings=False)


@_register()
def mohd_495m():
    return MoHDConfig(dim=1536, depth=14, num_heads=12, mlp_dim=4096, tie_embeddings=False)


@_register()
def mohd_1_13b():
    return MoHDConfig(dim=2048, depth=20, num_heads=16, mlp_dim=5376, tie_embeddings=False)
