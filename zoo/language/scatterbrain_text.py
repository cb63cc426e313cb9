"""Scatterbrain as a classifier of token sequences: every block reads the whole sequence, in both directions.

Paper: Chen et al., arXiv 2110.15343. Widths, depths, heads, windows and features of ``scatterbrain_text_lra_*`` are
those of the authors' configurations of the Long Range Arena (HazyResearch/scatterbrain, ``sblocal``; arXiv 2011.04006),
whose exact part is the window; ``num_hashes`` adds the buckets of their ``sbsmyrf``. Images are sequences of 256 grey
values. Where the house differs: the absolute positions are sinusoids, which have no length; text is bytes and ListOps
has its 15 symbols, as in ``s4_text``; the classifier reads the mean over the tokens.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.classifier import SequenceClassifier, SequenceConfig, padding_last
from zoo.language.scatterbrain import LRA
from zoo.layers.attention import BidirectionalScatterbrain
from zoo.layers.positions import rotary_tables
from zoo.layers.sequence_block import EncoderBlock
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScatterbrainTextConfig(SequenceConfig):
    """Options of Scatterbrain as a classifier of token sequences."""

    num_heads: int
    """Heads."""
    head_dim: int | None = None
    """Width of a head; None for dim / num_heads."""
    window: int
    """Steps a query sees exactly, half of them before it."""
    num_features: int
    """Random features of the low-rank part, even."""
    cluster_size: int = 32
    """Steps of a bucket."""
    num_hashes: int = 0
    """Hashes whose buckets make further pairs exact."""
    mlp_dim: int
    """Hidden units of the MLP."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "window", "num_features", "cluster_size", "mlp_dim")
        if self.dim % 2:
            raise ValueError(f"dim must be even, half of it for sines and half for cosines: got {self.dim}")


class ScatterbrainTextClassifier(SequenceClassifier):
    """A token embedding with sinusoidal positions, attention blocks, the mean over the tokens, and a classifier."""

    config: ScatterbrainTextConfig

    def build_block(self, index: int) -> nn.Module:
        """Layer norm and attention, layer norm and MLP."""
        c = self.config
        mixer = BidirectionalScatterbrain(
            c.dim, c.num_heads, c.window, c.num_features, cluster_size=c.cluster_size, num_hashes=c.num_hashes,
            head_dim=c.head_dim,
        )  # fmt: skip
        return EncoderBlock(c.dim, mixer, c.mlp_dim, c.mixer_drop_rate)

    def build_norm(self) -> nn.Module:
        """A layer norm."""
        return nn.LayerNorm(self.config.dim)

    def forward_features(self, tokens: Tensor) -> Tensor:
        """As of every classifier; padding is moved to the end, so that it takes no position."""
        self._check(tokens)
        return super().forward_features(padding_last(tokens))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, dim): the embedding, and sines and cosines of the positions."""
        x = self.embedding(tokens)
        tables = rotary_tables(torch.arange(tokens.shape[1], device=x.device), x.shape[-1], dtype=x.dtype)
        return x + torch.cat(tables, dim=-1).to(x.dtype)


_register = partial(
    register_model,
    ScatterbrainTextClassifier,
    task="text-classification",
    family="scatterbrain_text",
    paper=Paper("Scatterbrain: Unifying Sparse and Low-rank Attention Approximation", "2110.15343", 2021),
)


@_register()
def scatterbrain_text_nano():
    return ScatterbrainTextConfig(
        vocab_size=15, num_classes=10, dim=64, depth=4, num_heads=4, window=16, num_features=16, mlp_dim=128
    )


@_register()
def scatterbrain_text_lra_listops():
    return ScatterbrainTextConfig(vocab_size=15, num_classes=10, **LRA["listops"])


@_register()
def scatterbrain_text_lra_text():
    return ScatterbrainTextConfig(vocab_size=256, num_classes=2, **LRA["text"])


@_register()
def scatterbrain_text_lra_retrieval():
    return ScatterbrainTextConfig(vocab_size=256, num_classes=2, pair=True, **LRA["retrieval"])


@_register()
def scatterbrain_text_lra_image():
    return ScatterbrainTextConfig(vocab_size=256, num_classes=10, **LRA["image"])


@_register()
def scatterbrain_text_lra_pathfinder():
    return ScatterbrainTextConfig(vocab_size=256, num_classes=2, **LRA["pathfinder"])
