"""SmallThinker: a router that reads a block's input, ReGLU experts, windows with and whole attention without positions.

Paper: Song et al., "SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment",
arXiv 2507.20984. Sizes of the published checkpoints: the 4B has rotary positions and no window in every block, as its
config.json says, whatever the report says of the family.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block
from zoo.language.transformer import DecoderConfig, check_layers
from zoo.layers import CausalAttention, SlidingWindowAttention, State
from zoo.layers.moe import MoE
from zoo.layers.step import Value, Writer, describes, moe_step
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallThinkerConfig(DecoderConfig):
    """Options of SmallThinker; ``mlp_dim`` is the width of one expert."""

    vocab_size: int = 151936
    head_dim: int | None = None
    """Width of an attention head, dim / num_heads when None."""
    nope_layers: tuple[int, ...] = ()
    """Blocks whose attention has no positions."""
    window: int | None = None
    """Newest steps that attention sees; None for all."""
    full_layers: tuple[int, ...] = ()
    """Blocks whose attention sees all steps, where there is a window."""
    num_experts: int
    """Experts of a block."""
    top_k: int
    """Experts a token takes."""
    score: str = "sigmoid"
    """Weights of a token's experts: "sigmoid" of each one's logit over their sum, or "softmax" over the chosen ones."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss (this library's: the report gives none)."""
    norm_eps: float = 1e-6
    context_length: int | None = None
    """Steps of the sequences trained on, for the record: nothing here depends on it."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "head_dim", "window", "num_experts", "top_k", "context_length")
        check_layers(self)


class EarlyRoutedBlock(Block):
    r"""Where a token goes is known before attention runs, so that its experts can be fetched meanwhile.

    .. math::
        h = x + \mathrm{attention}(\mathrm{norm}(x)), \quad
        y = h + \mathrm{experts}(\mathrm{norm}(h), \mathrm{router}(x))
    """

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim), in the dtype of the residual stream, -> the same."""
        experts = cast(MoE, self.mlp)
        logits = experts.router(x)  # (B, T, E), of the input as it is
        x = x + self.mixer(self.norm(x), state, seq_idx=seq_idx)
        return x + experts(self.mlp_norm(x), None if seq_idx is None else seq_idx >= 0, logits)  # type: ignore[misc]


@describes(EarlyRoutedBlock)
def _early_routed_block(program: Writer, block: EarlyRoutedBlock, x: Value) -> Value:
    experts = cast(MoE, block.mlp)
    program.visit(experts)
    logits = program.call(experts.router, x)
    program.accumulate(x, program.call(block.mixer, program.call(block.norm, x)))
    program.accumulate(x, moe_step(program, experts, program.call(block.mlp_norm, x), logits))  # type: ignore[arg-type]
    return x


class SmallThinkerLanguageModel(LanguageModel):
    """A stack of attention and early routed experts."""

    config: SmallThinkerConfig

    def build_block(self, index: int) -> Block:
        """Norm and causal attention, norm and ReGLU experts."""
        c = self.config
        base = None if index in c.nope_layers else c.rope_base
        heads = c.num_kv_heads, base, c.head_dim
        if c.window is None or index in c.full_layers:
            mixer = CausalAttention(c.dim, c.num_heads, *heads)
        else:
            mixer = SlidingWindowAttention(c.dim, c.num_heads, c.window, *heads)
        experts = MoE(
            c.dim, c.mlp_dim, c.num_experts, c.top_k, normalize=True, score=c.score, act=F.relu,
            balance_weight=c.balance_weight,
        )  # fmt: skip
        return EarlyRoutedBlock(c, mixer, experts)


_register = partial(
    register_model,
    SmallThinkerLanguageModel,
    task="language",
    family="smallthinker",
    paper=Paper(
        "SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment",
        "2507.20984",
        2025,
    ),
)


@_register()
def smallthinker_nano():
    return SmallThinkerConfig(
        vocab_size=256, dim=64, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=64, num_experts=8, top_k=2, window=32,
        nope_layers=(0,), full_layers=(0,), initializer_range=0.1,
    )  # fmt: skip


@_register()
def smallthinker_4b_a0_6b():
    return SmallThinkerConfig(
        dim=1536, depth=32, num_heads=12, num_kv_heads=2, head_dim=128, mlp_dim=768, num_experts=32, top_k=4,
        rope_base=1.5e6, context_length=32768,
    )  # fmt: skip


@_register()
def smallthinker_21b_a3b():
    every_fourth = tuple(range(0, 52, 4))
    return SmallThinkerConfig(
        dim=2560, depth=52, num_heads=28, num_kv_heads=4, head_dim=128, mlp_dim=768, num_experts=64, top_k=6,
        rope_base=1.5e6, window=4096, nope_layers=every_fourth, full_layers=every_fourth, tie_embeddings=False,
        context_length=16384,
    )  # fmt: skip
