"""Mixture-of-Depths: the transformer in which every other block works on a small share of the tokens.

Paper: Raposo et al., "Mixture-of-Depths", arXiv 2404.02258 (a capacity of 12.5 % in every other block was best). The
sizes are those of this library's transformer; the authors published neither code nor weights.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block
from zoo.language.transformer import DecoderConfig
from zoo.layers import CausalAttention, KeyValueState, SwiGLU
from zoo.layers.depth import ActiveAttention, ActiveTokens, TokenRouter
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoDConfig(DecoderConfig):
    """Options of the Mixture-of-Depths transformer."""

    capacity: float = 0.125
    """Share of a sequence's tokens that a routed block works on."""
    routed_every: int = 2
    """Of each group of so many blocks the last is routed, the others work on all tokens."""
    router_bias: bool = True
    """The offset of the router's weight, see ``TokenRouter``; False is the paper's formula."""
    predictor_dim: int = 64
    """Hidden width of the predictor that chooses outside training."""
    predictor_weight: float = 1.0
    """Weight of the predictor's loss."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "routed_every", "predictor_dim")
        if self.routed_every > self.depth:
            raise ValueError(
                f"routed_every must be at most depth, or no block is routed: got {self.routed_every}, "
                f"depth {self.depth}"
            )


class MoDBlock(Block):
    """A block whose attention and feed-forward layer see the chosen tokens alone, with one weight for both."""

    mixer: ActiveAttention
    mlp: SwiGLU

    def __init__(self, config: MoDConfig):
        c = config
        mixer = ActiveAttention(c.dim, c.num_heads, c.num_kv_heads, c.rope_base, c.capacity)
        super().__init__(c, mixer, SwiGLU(c.dim, c.mlp_dim))
        self.router = TokenRouter(
            c.dim, c.capacity, bias=c.router_bias, predictor_dim=c.predictor_dim, predictor_weight=c.predictor_weight
        )

    def forward(self, x: Tensor, state: KeyValueState | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim), in the dtype of the residual stream, -> the same."""
        tokens = ActiveTokens.of(x, [state], seq_idx)
        tokens, rows, weight = self.router(x, tokens, decoding=state is not None)  # (B, K, dim), (B, K)
        normal = self.norm(rows)
        mixed = self.mixer.among(normal, tokens, state)
        output = mixed + self.mlp(self.mlp_norm(rows + mixed))  # pyright: ignore[reportOptionalCall]
        return tokens.add(x, weight[..., None] * output)


class MoDLanguageModel(LanguageModel):
    """A stack of attention and SwiGLU blocks, some of them routed."""

    config: MoDConfig

    def build_block(self, index: int) -> Block:
        """A routed block, or norm and causal attention, norm and SwiGLU."""
        c = self.config
        if (index + 1) % c.routed_every == 0:
            return MoDBlock(c)
        return Block(c, CausalAttention(c.dim, c.num_heads, c.num_kv_heads, c.rope_base), SwiGLU(c.dim, c.mlp_dim))


_register = partial(
    register_model,
    MoDLanguageModel,
    task="language",
    family="mod",
    paper=Paper(
        "Mixture-of-Depths: Dynamically allocating compute in transformer-based language models", "2404.02258", 2024
    ),
)


@_register()
def mod_nano():
    return MoDConfig(vocab_size=256, dim=128, depth=4, num_heads=4, num_kv_heads=2, mlp_dim=384)


@_register()
def mod_130m():
    return MoDConfig(dim=768, depth=12, num_heads=12, num_kv_heads=4, mlp_dim=2560)
