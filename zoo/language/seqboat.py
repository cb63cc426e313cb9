"""SeqBoat: averages of every token, and gated attention among the few that a router activates.

Paper: Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", arXiv 2306.11197. ``seqboat_enwik8`` is
the authors' ``slag_lm_enwik8_base_v2`` with the options of their README: layer norms before, the last one without
weights, no feed-forward layers, embeddings times the square root of their width. Where it differs: a kernel of averages
is as long as the sequence (theirs is cut at 2048 steps), and tokens are always compressed, so that a window of active
tokens means the same in every batch (theirs counts all tokens where a row of the batch is all active).
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import LayerNorm, State
from zoo.layers.depth import CausalWindow, SparseActivation
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqBoatConfig(LanguageConfig):
    """Options of SeqBoat as a language model."""

    hidden_dim: int
    """Channels of values and their gate."""
    qk_dim: int
    """Channels of queries and keys."""
    d_state: int = 16
    """Averages of a channel."""
    window: int
    """Active tokens that attention looks back."""
    temperature: float = 1.0
    """Of the routers at the start, over the square root of dim."""
    drop_rate: float = 0.0
    """Dropout of the embeddings, of the averages and of what a block adds."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "hidden_dim", "qk_dim", "d_state", "window")


class SeqBoatBlock(Block):
    """silu(x + dropout(mixer(norm(x))))."""

    def __init__(self, config: SeqBoatConfig, mixer: SparseActivation):
        super().__init__(config, mixer, norm=LayerNorm)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim), in the dtype of the residual stream, -> the same."""
        return F.silu(x + self.drop(self.mixer(self.norm(x), state, seq_idx=seq_idx)))


class SeqBoatLanguageModel(LanguageModel):
    """A stack of sparsely activated blocks."""

    config: SeqBoatConfig

    def build_block(self, index: int) -> Block:
        """Norm, averages and gated attention."""
        c = self.config
        attention = CausalWindow(c.qk_dim, c.window)
        mixer = SparseActivation(c.dim, attention, c.hidden_dim, c.qk_dim, c.d_state, c.temperature, c.drop_rate)
        return SeqBoatBlock(c, mixer)

    def build_norm(self) -> nn.Module:
        """A layer norm without weights."""
        return nn.LayerNorm(self.config.dim, self.config.norm_eps, elementwise_affine=False)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, dim)."""
        return F.dropout(math.sqrt(self.config.dim) * super().embed(tokens), self.config.drop_rate, self.training)


_register = partial(
    register_model,
    SeqBoatLanguageModel,
    task="language",
    family="seqboat",
    paper=Paper("Sparse Modular Activation for Efficient Sequence Modeling", "2306.11197", 2023),
)


@_register()
def seqboat_nano():
    return SeqBoatConfig(
        vocab_size=256, dim=96, depth=3, hidden_dim=192, qk_dim=32, window=32, initializer_range=96**-0.5
    )


@_register()
def seqboat_enwik8():
    return SeqBoatConfig(
        vocab_size=256, dim=616, depth=14, hidden_dim=1232, qk_dim=128, window=1024, drop_rate=0.15,
        initializer_range=616**-0.5,
    )  # fmt: skip
