"""RWKV-7 "Goose": the generalised delta rule, with vector-valued decay and step sizes, and a token shift.

Paper: Peng et al., arXiv 2503.14456. Sizes of the authors' World models.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import LayerNorm, Mixer, RWKV7Block, State
from zoo.layers.step import Value, Writer, describes
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class RWKV7Config(LanguageConfig):
    """Options of RWKV-7."""

    vocab_size: int = 65536
    head_dim: int = 64
    """Channels of a head."""
    mlp_dim: int
    """Hidden width of the channel mix."""
    decay_rank: int = 64
    """Rank of what makes the decay of a token."""
    rate_rank: int = 64
    """Rank of what makes the step sizes of a token."""
    value_rank: int = 32
    """Rank of what mixes in the values of the first block."""
    gate_rank: int = 128
    """Rank of the output's gate."""
    chunk_size: int = 64
    """Steps a chunk of the parallel form; it changes the speed, not the result."""
    tie_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "head_dim", "mlp_dim", "chunk_size")
        require_positive(self, "decay_rank", "rate_rank", "value_rank", "gate_rank")


class SingleMixer(Block):
    """A block that is one mixer, norms and residual sums included."""

    def __init__(self, mixer: Mixer):
        nn.Module.__init__(self)
        self.mixer = mixer

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, 2 dim) -> the same."""
        return self.mixer(x, state, seq_idx=seq_idx)


@describes(SingleMixer)
def _single_mixer(p: Writer, block: SingleMixer, x: Value) -> Value:
    return p.call(block.mixer, x)


class RWKV7LanguageModel(LanguageModel):
    """A stack of RWKV-7 blocks; the values of the first one travel beside the residual stream."""

    config: RWKV7Config

    def build_block(self, index: int) -> SingleMixer:
        """Time mix and channel mix."""
        c = self.config
        ranks = c.decay_rank, c.rate_rank, c.value_rank, c.gate_rank
        mixer = RWKV7Block(c.dim, c.head_dim, c.mlp_dim, ranks, index, c.depth, c.chunk_size, c.norm_eps)
        return SingleMixer(mixer)

    def build_norm(self) -> LayerNorm:
        """With a bias."""
        return LayerNorm(self.config.dim, self.config.norm_eps)

    def init_weights(self) -> None:
        """The authors' initial values, normal where theirs are orthogonal: a tiny embedding, which a norm follows."""
        nn.init.uniform_(self.embedding.weight, -1e-4, 1e-4)
        nn.init.normal_(self.head.weight, std=0.5 / math.sqrt(self.config.dim))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, 2 dim): the embedding, and place for the first block's values."""
        x = super().embed(tokens)
        return torch.cat([x, torch.zeros_like(x)], dim=-1)

    def forward_norm(self, x: Tensor) -> Tensor:
        """(B, T, 2 dim) -> (B, T, dim) as the head reads it."""
        return super().forward_norm(x.chunk(2, dim=-1)[0])

    @property
    def stream_dim(self) -> int:
        """With the first block's values."""
        return 2 * self.config.dim

    def read_step(self, p: Writer, x: Value) -> Value:
        """Of the residual stream alone."""
        return self.read_stream(p, x.split(self.config.dim, self.config.dim)[0])

    def no_weight_decay(self) -> set[str]:
        """And all vectors of the blocks: shares of the token before, scales of the keys, the bonus."""
        vectors = {name for name, _ in self.named_parameters() if name.split(".")[-1][1:2] == "_"}
        return super().no_weight_decay() | vectors


_register = partial(
    register_model,
    RWKV7LanguageModel,
    task="language",
    family="rwkv7",
    paper=Paper("RWKV-7 Goose with Expressive Dynamic State Evolution", "2503.14456", 2025),
)


@_register()
def rwkv7_nano():
    return RWKV7Config(
        vocab_size=256, dim=128, depth=3, head_dim=32, mlp_dim=448, decay_rank=16, rate_rank=16, value_rank=16,
        gate_rank=32,
    )  # fmt: skip


@_register()
def rwkv7_0_1b():
    return RWKV7Config(dim=768, depth=12, mlp_dim=3072)


@_register()
def rwkv7_0_4b():
    return RWKV7Config(dim=1024, depth=24, mlp_dim=4096)


@_register()
def rwkv7_1_5b():
    return RWKV7Config(dim=2048, depth=24, mlp_dim=8192, decay_rank=96, rate_rank=96, value_rank=64, gate_rank=256)


@_register()
def rwkv7_2_9b():
    return RWKV7Config(dim=2560, depth=32, mlp_dim=10240, decay_rank=96, rate_rank=96, value_rank=64, gate_rank=320)
