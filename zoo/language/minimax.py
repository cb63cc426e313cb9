"""MiniMax: lightning attention in seven of eight blocks, softmax attention in the eighth, experts in all.

Paper: MiniMax, "MiniMax-01: Scaling Foundation Models with Lightning Attention", arXiv 2501.08313; MiniMax-M1, arXiv
2506.13585, has the same size. Options of the published config.json.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.block import Block
from zoo.language.moe import JointlyBalanced
from zoo.language.transformer import DecoderConfig
from zoo.layers import CausalAttention, LightningAttention, Mixer, State
from zoo.layers.attention import Rotary
from zoo.layers.moe import MoE
from zoo.layers.options import require_above
from zoo.layers.step import Value, Writer, describes
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniMaxConfig(DecoderConfig):
    """Options of MiniMax; ``mlp_dim`` is the width of an expert, both kinds of attention have ``num_heads``."""

    vocab_size: int = 200064
    head_dim: int | None = None
    """Width of a head, dim / num_heads when None."""
    attention_layers: tuple[int, ...]
    """Blocks with softmax attention; the others have lightning attention."""
    rope_base: float = 1e7
    rotary_fraction: float = 0.5
    """Part of a head's channels that the softmax attention's positions turn."""
    chunk_size: int = 64
    """Steps a chunk of the lightning attention; it changes the speed, not the result."""
    attention_multipliers: tuple[float, float] = (1.0, 1.0)
    """Factors of what softmax attention reads and of what it gives, in the sum behind it."""
    lightning_multipliers: tuple[float, float] = (1.0, 1.0)
    """The same for lightning attention."""
    mlp_multipliers: tuple[float, float] = (1.0, 1.0)
    """The same for the experts."""
    num_experts: int = 32
    """Experts of a layer."""
    top_k: int = 2
    """Experts a token takes; their weights sum to 1."""
    balance_weight: float = 0.001
    """Weight of the load-balance loss over the tokens of all layers."""
    tie_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "head_dim", "chunk_size", "num_experts", "top_k")
        require_above(0, rotary_fraction=self.rotary_fraction)
        if not set(self.attention_layers) <= set(range(self.depth)):
            raise ValueError(
                f"attention_layers must be blocks in [0, depth = {self.depth}), got {self.attention_layers}"
            )


class NormedStreamBlock(Block):
    """y = a n(x) + b mixer(n(x)), then a' n'(y) + b' mlp(n'(y)): the norms stand in the residual stream.

    Args:
        config: as of ``Block``.
        mixer, mlp: its parts.
        mixer_multipliers, mlp_multipliers: (a, b) and (a', b').
    """

    def __init__(
        self,
        config: MiniMaxConfig,
        mixer: Mixer,
        mlp: nn.Module,
        mixer_multipliers: tuple[float, float],
        mlp_multipliers: tuple[float, float],
    ):
        super().__init__(config, mixer, mlp)
        self.mixer_multipliers, self.mlp_multipliers = mixer_multipliers, mlp_multipliers

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim), in the dtype of the residual stream, -> the same."""
        (a, b), (c, d) = self.mixer_multipliers, self.mlp_multipliers
        x = self.norm(x)
        x = self.mlp_norm(a * x + b * self.mixer(x, state, seq_idx=seq_idx))  # type: ignore[misc]
        return c * x + d * self.feed_forward(x, seq_idx)


@describes(NormedStreamBlock)
def _normed_stream_block(p: Writer, block: Any, x: Value) -> Value:
    (a, b), (c, d) = block.mixer_multipliers, block.mlp_multipliers
    normal = p.call(block.norm, x)
    total = p.whole(normal._replace(factor=a))
    y = p.call(block.mixer, normal)
    p.accumulate(total, y._replace(factor=b * y.factor))
    normal = p.call(block.mlp_norm, total)
    p.accumulate(x, normal._replace(factor=c, made=None), first=True)
    y = p.call(block.mlp, normal)
    p.accumulate(x, y._replace(factor=d * y.factor))
    return x


class MiniMaxLanguageModel(JointlyBalanced):
    """A stack of lightning or softmax attention, with experts."""

    config: MiniMaxConfig

    def build_block(self, index: int) -> Block:
        """Attention of either kind and experts, with the norms in the residual stream."""
        c = self.config
        softmax = index in c.attention_layers
        mixer = self.build_attention() if softmax else self.build_lightning(index)
        mlp = MoE(c.dim, c.mlp_dim, c.num_experts, c.top_k, normalize=True)
        return NormedStreamBlock(
            c, mixer, mlp, c.attention_multipliers if softmax else c.lightning_multipliers, c.mlp_multipliers
        )

    def build_attention(self) -> Mixer:
        """Softmax attention, a part of whose channels turns."""
        c = self.config
        width = c.head_dim or c.dim // c.num_heads
        rotary = Rotary(int(width * c.rotary_fraction), c.rope_base)
        return CausalAttention(c.dim, c.num_heads, c.num_kv_heads, head_dim=c.head_dim, rotary=rotary)

    def build_lightning(self, index: int) -> Mixer:
        """Lightning attention, whose decay depends on the place of the block."""
        c = self.config
        return LightningAttention(c.dim, c.num_heads, c.head_dim, index=index, depth=c.depth, chunk_size=c.chunk_size)

    @property
    def joint_balance(self) -> float:
        """Weight of the load-balance loss over all layers."""
        return self.config.balance_weight


_register = partial(
    register_model,
    MiniMaxLanguageModel,
    task="language",
    family="minimax",
    paper=Paper("MiniMax-01: Scaling Foundation Models with Lightning Attention", "2501.08313", 2025),
)
_DEEPNORM = (160**0.25, 1.0)  # of 80 layers: (2 L)^(1/4), as published to 17 digits


@_register()
def minimax_nano():
    return MiniMaxConfig(
        vocab_size=256, dim=96, depth=2, num_heads=6, num_kv_heads=2, mlp_dim=128, attention_layers=(1,), rope_base=1e4,
        num_experts=4, balance_weight=0.01, tie_embeddings=True,
    )  # fmt: skip


@_register()
def minimax_text_01():
    return MiniMaxConfig(
        dim=6144, depth=80, num_heads=64, num_kv_heads=8, head_dim=128, mlp_dim=9216,
        attention_layers=tuple(range(7, 80, 8)), attention_multipliers=_DEEPNORM, lightning_multipliers=_DEEPNORM,
        mlp_multipliers=_DEEPNORM,
    )  # fmt: skip
