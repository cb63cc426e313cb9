"""Linformer: an encoder whose attention sees a fixed number of mixtures of the tokens.

Paper: Wang et al., "Linformer: Self-Attention with Linear Complexity", arXiv 2006.04768. ``linformer_base`` has the
widths of RoBERTa-base, which the paper starts from, with its n = 512 and k = 128, and two classes. Where it differs, as
public code does (lucidrains/linformer): norms stand before attention and MLP, queries, keys and values have no biases.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.language.classifier import SequenceClassifier, SequenceConfig, padding_last
from zoo.layers.attention import LinformerAttention, SequenceProjection
from zoo.layers.sequence_block import EncoderBlock
from zoo.registry import Paper, register_model

SHARING = ("none", "headwise", "key-value", "layerwise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinformerConfig(SequenceConfig):
    """Options of Linformer."""

    num_heads: int
    """Heads."""
    mlp_dim: int
    """Hidden units of the MLP."""
    max_length: int
    """Tokens of the longest sequence, n."""
    rank: int
    """Mixtures of the tokens that attention sees, k."""
    sharing: str = "headwise"
    """Matrices E and F that mix keys and values: of each head ("none"), one E and one F a block ("headwise"), one for
    both ("key-value"), or one in all ("layerwise")."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "mlp_dim", "max_length", "rank")
        if self.sharing not in SHARING:
            raise ValueError(f"sharing must be one of {SHARING}, got {self.sharing!r}")


class LinformerClassifier(SequenceClassifier):
    """Embeddings of tokens and positions, encoder blocks, the mean over the tokens, and a classifier."""

    config: LinformerConfig

    def __init__(self, config: LinformerConfig):
        super().__init__(config)
        self.positions = nn.Embedding(config.max_length, config.dim)
        if config.sharing == "layerwise":
            first, *others = (cast(LinformerAttention, cast(Any, block).mixer) for block in self.blocks)
            for mixer in others:
                mixer.keys = mixer.values = first.keys

    def build_block(self, index: int) -> nn.Module:
        """Layer norm and attention, layer norm and MLP."""
        c = self.config
        heads = c.num_heads if c.sharing == "none" else 1
        keys = SequenceProjection(c.max_length, c.rank, heads)
        values = SequenceProjection(c.max_length, c.rank, heads) if c.sharing in ("none", "headwise") else keys
        mixer = LinformerAttention(c.dim, c.num_heads, keys, values)
        return EncoderBlock(c.dim, mixer, c.mlp_dim, c.mixer_drop_rate)

    def build_norm(self) -> nn.Module:
        """A layer norm."""
        return nn.LayerNorm(self.config.dim)

    def forward_features(self, tokens: Tensor) -> Tensor:
        """As of every classifier; padding is moved to the end, so that it takes no position."""
        self._check(tokens)
        if tokens.shape[-1] > self.config.max_length:
            raise ValueError(
                f"sequences must have at most max_length {self.config.max_length} tokens, got {tokens.shape[-1]}"
            )
        return super().forward_features(padding_last(tokens))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, dim): the embeddings of the tokens and of their positions."""
        return self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))


_register = partial(
    register_model,
    LinformerClassifier,
    task="text-classification",
    family="linformer",
    paper=Paper("Linformer: Self-Attention with Linear Complexity", "2006.04768", 2020),
)


@_register()
def linformer_nano():
    return LinformerConfig(
        vocab_size=15, num_classes=10, dim=48, depth=3, num_heads=4, mlp_dim=96, max_length=64, rank=16
    )


@_register()
def linformer_base():
    return LinformerConfig(
        vocab_size=50265, num_classes=2, dim=768, depth=12, num_heads=12, mlp_dim=3072, max_length=512, rank=128
    )
