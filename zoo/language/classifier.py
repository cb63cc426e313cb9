"""What classifiers of token sequences share: embedding, blocks, the mean over the tokens, pairs, the classifier."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.layers import recompute
from zoo.layers.sequence_block import SequenceNorm, normalised


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """Options of every classifier of token sequences."""

    vocab_size: int
    """Tokens the model knows."""
    num_classes: int
    """Classes, 0 for no classifier."""
    pair: bool = False
    """Two sequences are compared."""
    dim: int
    """Model width."""
    depth: int = 6
    """Blocks."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    mixer_drop_rate: float = 0.0
    """Dropout within and after the mixer."""

    def __post_init__(self):
        require_positive(self, "vocab_size", "dim", "depth")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must not be negative, got {self.num_classes}")
        require_ranges(self)


class SequenceClassifier(nn.Module, ABC):
    """A token embedding, blocks that read the whole sequence, the mean over its tokens, and a classifier of it.

    Negative tokens are padding: in evaluation mode they change nothing. Of a pair, the same network reads both, and the
    classifier is a layer of D hidden units over [a, b, a - b, a b] of the two means, as in the Long Range Arena.
    """

    activation: type[nn.Module] = nn.ReLU  # of the layer that compares a pair

    def __init__(self, config: SequenceConfig):
        super().__init__()
        self.config = c = config
        self.num_features = c.dim
        self.grad_checkpointing = False
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = nn.ModuleList(self.build_block(index) for index in range(c.depth))
        self.norm = self.build_norm()
        self.compare = nn.Sequential(nn.Linear(4 * c.dim, c.dim), self.activation()) if c.pair else nn.Identity()
        self.head = self._build_head(c.num_classes)

    @abstractmethod
    def build_block(self, index: int) -> nn.Module:
        """Block ``index``: x (B, T, dim) and the mask (B, T), False at padding, -> (B, T, dim)."""

    @abstractmethod
    def build_norm(self) -> nn.Module:
        """What follows the blocks."""

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T), not negative -> (B, T, dim)."""
        return self.embedding(tokens)

    def forward_norm(self, x: Tensor, mask: Tensor) -> Tensor:
        """The stream (B, T, dim) after the blocks, with the mask of the tokens, as the mean reads it."""
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T), or (B, 2, T) for pairs, int64 -> logits (B, num_classes); features when num_classes is 0."""
        return self.forward_head(self.forward_features(tokens))

    def forward_features(self, tokens: Tensor) -> Tensor:
        """tokens (B, T), or (B, 2, T) for pairs, int64 -> means over each sequence's tokens, (B, dim) or (B, 2, dim).

        Raises:
            ValueError: for tokens of another shape or dtype, or beyond the vocabulary.
        """
        self._check(tokens)
        rows = tokens.flatten(0, -2)
        mask = rows >= 0
        x = self.embed(rows.clamp(min=0))
        for block in self.blocks:
            x = recompute(block, x, mask) if self.grad_checkpointing and self.training else block(x, mask)
        x = self.forward_norm(x, mask)
        weight = mask[..., None].to(x.dtype)
        return ((x * weight).sum(1) / weight.sum(1).clamp(min=1)).unflatten(0, tokens.shape[:-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` gives to logits, or to the (B, dim) that enters the classifier."""
        if self.config.pair:
            a, b = x.unbind(1)
            x = torch.cat([a, b, a - b, a * b], dim=-1)
        x = nn.functional.dropout(self.compare(x), self.config.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    @property
    def num_classes(self) -> int:
        """Classes of the present head, 0 for none."""
        return self.config.num_classes

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh classifier for ``num_classes``, none for 0."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        self.head = self._build_head(num_classes).to(self.embedding.weight)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass instead of keeping what they computed."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone, besides biases and norms."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            for name in getattr(module, "float32_parameters", ())
        }

    def _build_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.config.dim, num_classes) if num_classes else nn.Identity()

    def _check(self, tokens: Tensor) -> None:
        wanted = "(B, 2, T)" if self.config.pair else "(B, T)"
        right = tokens.dim() == 3 and tokens.shape[1] == 2 if self.config.pair else tokens.dim() == 2
        if not right or tokens.dtype != torch.int64 or not tokens.shape[-1]:
            raise ValueError(f"tokens must be {wanted} int64 with T >= 1, got {tuple(tokens.shape)} {tokens.dtype}")
        if torch.compiler.is_compiling() or tokens.is_meta or not tokens.numel():
            return
        if (highest := int(tokens.max())) >= self.config.vocab_size:
            raise ValueError(f"tokens must be below vocab_size {self.config.vocab_size}, got {highest}")


def padding_last(tokens: Tensor) -> Tensor:
    """tokens (..., T) with the negative ones, padding, moved to the end, so that they take no position."""
    return tokens.gather(-1, (tokens < 0).to(torch.uint8).argsort(dim=-1, stable=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNormConfig(SequenceConfig):
    """Options of the classifiers of residual blocks with batch norms."""

    bidirectional: bool = True
    """The mixers also read from the end."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, growing linearly up to it."""
    prenorm: bool = True
    """Batch norm before the mixer and after the last block; False: after each sum."""


class BatchNormClassifier(SequenceClassifier):
    """Residual blocks of a mixer, with batch norms; pairs are compared by a layer with GELU."""

    config: BatchNormConfig
    activation = nn.GELU

    def build_norm(self) -> nn.Module:
        """A batch norm, unless there is one after each sum."""
        return SequenceNorm(self.config.dim) if self.config.prenorm else nn.Identity()

    def forward_norm(self, x: Tensor, mask: Tensor) -> Tensor:
        """The norm over what is not padding."""
        return normalised(self.norm, x, mask)

    def drop_path(self, index: int) -> float:
        """Stochastic depth of block ``index``."""
        return self.config.drop_path_rate * index / max(1, self.config.depth - 1)
