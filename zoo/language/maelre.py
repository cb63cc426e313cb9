"""MAELRE: one encoder for text, series and images that merges its tokens as it goes; a reconstruction.

Paper: Parag and Elgammal, "Modality Agnostic Efficient Long Range Encoder", arXiv 2507.19409. Known to us is its
abstract alone: tokens are merged at successive stages, attention is a lightweight approximation while there are many of
them and dot-product attention once merging has left few. Which approximation, which rule of merging, how many stages,
and all sizes are ours: pairs of similar neighbours are merged as in Token Merging (arXiv 2210.09461), and too many keys
are averaged over runs of neighbours. No figure of the paper is reproduced or claimed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.kernels.dispatch import compute_dtype
from zoo.language.classifier import SequenceClassifier, SequenceConfig, padding_last
from zoo.layers import Mlp, recompute
from zoo.layers.tokens import SizedAttention, match_pairs, merge, tokens_left
from zoo.layers.tokens.merging import check
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAELREConfig(SequenceConfig):
    """Options of the encoder."""

    num_heads: int
    """Heads."""
    mlp_dim: int
    """Hidden units of the MLP."""
    stage_depth: int = 1
    """Blocks between two mergings; the last of a stage merges, except the last of all."""
    merge_rate: float = 0.5
    """Share of the tokens that go into others at the end of a stage; 0 for a plain encoder."""
    merge_window: int | None = 8
    """Places on either side among which a token looks for a partner, None for all, in time quadratic in the tokens."""
    max_keys: int | None = 64
    """Keys that attention sees: more are averaged over runs of neighbours; None for all."""
    input: str = "text"
    """What is read: "text", tokens; "series", steps of real numbers; or "image"."""
    in_features: int = 1
    """Numbers in a step of a series."""
    in_chans: int = 1
    """Channels of an image."""
    patch_size: int = 1
    """Steps of a series, or pixels along each side of an image, that become a token."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads", "mlp_dim", "stage_depth", "in_features", "in_chans", "patch_size")
        check(self.merge_rate, self.merge_window)
        if self.input not in READERS:
            raise ValueError(f"input must be one of {', '.join(READERS)}, got {self.input!r}")
        if self.pair and self.input != "text":
            raise ValueError(f"pairs are of texts, got input {self.input!r}")


def _text(tokens: Tensor, c: MAELREConfig) -> tuple[Tensor, Tensor]:
    rows = padding_last(tokens.flatten(0, -2))
    return rows.clamp(min=0), rows >= 0


def _series(series: Tensor, c: MAELREConfig) -> tuple[Tensor, Tensor]:
    if series.dim() != 3 or series.shape[2] != c.in_features or not series.shape[1] or not series.is_floating_point():
        raise ValueError(
            f"series must be (B, T, {c.in_features}) floats with T >= 1, got {tuple(series.shape)} {series.dtype}"
        )
    padded = F.pad(series, (0, 0, 0, -series.shape[1] % c.patch_size))
    return _all_real(rearrange(padded, "b (n p) c -> b n (p c)", p=c.patch_size))


def _image(images: Tensor, c: MAELREConfig) -> tuple[Tensor, Tensor]:
    sides, patch = images.shape[2:], c.patch_size
    right = images.dim() == 4 and images.shape[1] == c.in_chans and all(side and side % patch == 0 for side in sides)
    if not right or not images.is_floating_point():
        raise ValueError(
            f"images must be (B, {c.in_chans}, H, W) floats with H and W multiples of patch_size {patch}, got "
            f"{tuple(images.shape)} {images.dtype}"
        )
    return _all_real(rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch))


def _all_real(patches: Tensor) -> tuple[Tensor, Tensor]:
    return patches, patches.new_ones(patches.shape[:2], dtype=torch.bool)


READERS: dict[str, Callable[[Tensor, MAELREConfig], tuple[Tensor, Tensor]]] = {  # what is embedded, and what is real
    "text": _text,
    "series": _series,
    "image": _image,
}


def sinusoids(length: int, dim: int, like: Tensor) -> Tensor:
    """(length, dim): sines and cosines of the places, of wavelengths 2 pi to 20000 pi.

    Paper: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, section 3.5.
    """
    wide = {"device": like.device, "dtype": compute_dtype(like)}
    wavelength = 10000.0 ** (torch.arange(0, dim, 2, **wide) / dim)
    angle = torch.arange(length, **wide)[:, None] / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim].to(like.dtype)


class MergingBlock(nn.Module):
    """x + attention(norm(x)), tokens merged by the keys of that attention, then x + mlp(mlp_norm(x)).

    Args:
        dim: model width.
        mixer: the attention.
        mlp_dim: hidden units of the MLP.
        rate, window: see ``match_pairs``.
        drop_rate: dropout after attention and in the MLP.
    """

    def __init__(
        self, dim: int, mixer: SizedAttention, mlp_dim: int, rate: float, window: int | None, drop_rate: float = 0.0
    ):
        super().__init__()
        self.rate, self.window = rate, window
        self.norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp = Mlp(dim, mlp_dim, drop_rate)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, dim) and their sizes (B, T), 0 at padding -> the tokens left, and theirs."""
        y, keys = self.mixer(self.norm(x), size)
        x = x + self.drop(y)
        if self.rate:
            x, size = merge(
                x, size, match_pairs(keys, size, self.rate, self.window), tokens_left(size.shape[1], self.rate)
            )
        return x + self.mlp(self.mlp_norm(x)), size


class MAELREClassifier(SequenceClassifier):
    """Tokens with their places, blocks that merge them, their mean by size, and a classifier."""

    config: MAELREConfig

    def __init__(self, config: MAELREConfig):
        super().__init__(config)
        self.read, c = READERS[config.input], config
        features = {"series": c.in_features * c.patch_size, "image": c.in_chans * c.patch_size**2}
        if c.input in features:
            self.embedding = cast(nn.Embedding, nn.Linear(features[c.input], c.dim))

    def build_block(self, index: int) -> nn.Module:
        """A block, which merges if it ends a stage, unless it is the last."""
        c = self.config
        merges = (index + 1) % c.stage_depth == 0 and index + 1 < c.depth
        mixer = SizedAttention(c.dim, c.num_heads, c.max_keys)
        return MergingBlock(c.dim, mixer, c.mlp_dim, c.merge_rate if merges else 0.0, c.merge_window, c.mixer_drop_rate)

    def build_norm(self) -> nn.Module:
        """A layer norm."""
        return nn.LayerNorm(self.config.dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens (B, T), or (B, 2, T) for pairs, int64, negative ones padding; a series (B, T, in_features); or images
        (B, in_chans, H, W) -> logits (B, num_classes); features when num_classes is 0."""
        return super().forward(inputs)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """What ``forward`` takes -> means over the tokens, (B, dim), or (B, 2, dim) for pairs.

        Raises:
            ValueError: for inputs of another shape or dtype, or tokens beyond the vocabulary.
        """
        if self.config.input == "text":
            self._check(inputs)
        x, size = self.encode(inputs)
        means = ((x * size[..., None]).sum(1) / size.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)
        return means.unflatten(0, inputs.shape[:2]) if self.config.pair else means

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that are left of what ``forward`` takes, (B, N, dim), and their sizes (B, N)."""
        read, mask = self.read(inputs, self.config)
        x = self.embedding(read)
        x, size = x + sinusoids(x.shape[1], x.shape[2], x), mask.to(compute_dtype(x))
        for block in self.blocks:
            x, size = recompute(block, x, size) if self.grad_checkpointing and self.training else block(x, size)
        return self.norm(x), size


_register = partial(
    register_model,
    MAELREClassifier,
    task="text-classification",
    family="maelre",
    paper=Paper("Modality Agnostic Efficient Long Range Encoder", "2507.19409", 2025),
)


@_register()
def maelre_nano():
    return MAELREConfig(vocab_size=15, num_classes=10, dim=48, depth=3, num_heads=4, mlp_dim=96, max_keys=32)
