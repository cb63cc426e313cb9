"""Next-scale prediction: a transformer that says all codes of a map at once, of coarse maps before fine ones.

The tokens are those of a ``WeTok`` with scales. Paper: Tian et al., "Visual Autoregressive Modeling: Scalable Image
Generation via Next-Scale Prediction", arXiv 2404.02905; here the indices of a position's groups are drawn
independently, as many small softmaxes in place of one over a large table, and the sizes are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.generative.adaptive import AdaptiveBlock, AdaptiveHead, Past
from zoo.generative.classes import wanted
from zoo.generative.lookup_free import GroupedLookupFree
from zoo.generative.wetok import Scales, resized
from zoo.kernels.dispatch import compute_dtype
from zoo.layers import recompute
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextScaleConfig:
    """Options of a next-scale model; the first four are those of its tokenizer."""

    scales: tuple[int, ...] = (1, 2, 4)
    """Sides of the maps of codes, coarse to fine."""
    groups: int = 2
    """Indices of a position."""
    bits: int = 4
    """Bits of an index."""
    scale_decay: float = 0.5
    """Amplitude of a scale's codes over those of the scale before."""
    tokenizer: str = "wetok_scales_nano"
    """Name of the model that makes images of the tokens."""
    num_classes: int = 10
    """Classes that images can be asked for."""
    class_drop_rate: float = 0.1
    """Share of the training images whose class is hidden, for guidance."""
    dim: int = 96
    """Width."""
    depth: int = 4
    """Blocks."""
    num_heads: int = 4
    """Heads of the attention."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over the width."""

    def __post_init__(self):
        require_positive(self, "groups", "bits", "num_classes", "dim", "depth", "num_heads")
        require_ranges(self)
        if not self.scales or any(b <= a for a, b in zip((0, *self.scales), self.scales, strict=False)):
            raise ValueError(f"scales must rise from 1 or more, got {self.scales}")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim, got {self.num_heads} and {self.dim}")
        if not 0 < self.scale_decay <= 1:
            raise ValueError(f"scale_decay must be in (0, 1], got {self.scale_decay}")

    @property
    def sizes(self) -> list[int]:
        """Tokens of each scale."""
        return [side * side for side in self.scales]

    @property
    def in_chans(self) -> int:
        """Indices of a position, as channels of an image."""
        return self.groups

    @property
    def image_shape(self) -> tuple[int]:
        """(tokens,), as the pixels of an image."""
        return (sum(self.sizes),)

    @property
    def num_levels(self) -> int:
        """Values of an index."""
        return 2**self.bits


class Cache(Protocol):
    """What decides which keys and values are kept between scales."""

    def pasts(self, model: NextScale) -> Sequence[Past]:
        """Empty ones, one a block."""
        ...


class NextScale(nn.Module):
    r"""p(tokens) = prod over scales of p(map | coarser maps, class), a map's indices independent of each other.

    A scale is read at the places of its own tokens, as what the coarser maps add up to, resized to its side; the first
    as the class. Attention sees the own and all coarser scales.

    Attributes:
        config, grad_checkpointing: whether blocks are recomputed in the backward pass.
    """

    mask: Tensor

    def __init__(self, config: NextScaleConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.quantizer = GroupedLookupFree(c.groups, c.bits)
        self.scales = Scales(c.scales, c.scale_decay)
        self.embed = nn.Linear(c.groups * c.bits, c.dim)
        self.classes = nn.Embedding(c.num_classes + 1, c.dim)  # the last: none
        self.positions = nn.Parameter(torch.empty(sum(c.sizes), c.dim))
        self.blocks = nn.ModuleList(AdaptiveBlock(c.dim, c.num_heads, c.mlp_ratio) for _ in range(c.depth))
        self.head = AdaptiveHead(c.dim, c.groups * c.num_levels)
        level = torch.tensor([index for index, size in enumerate(c.sizes) for _ in range(size)])
        self.register_buffer("mask", level[:, None] >= level, persistent=False)
        for table in (self.classes.weight, self.positions):
            nn.init.normal_(table, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        """Logits, or the loss when labels are given.

        Args:
            tokens: (B, groups, tokens) int64: ``WeTok.encode(images).mT``.
            labels: the tokens themselves; -100 is not scored.
            classes: (B,) int64, of the images; none where None.

        Returns:
            Logits (B, groups, tokens, levels), or the mean loss in nats an index.

        Raises:
            ValueError: for tokens or classes of the wrong shape or dtype.
        """
        self._check(tokens)
        c = self._classes(classes, tokens)
        x = torch.cat([self.begin(c), *map(self.embed, self.maps(tokens)[:-1])], 1) + self.positions
        for block in self.blocks:
            x = self._run(block, x, c, self.mask)
        logits = self.logits(x, c)
        if labels is None:
            return logits
        return F.cross_entropy(logits.movedim(-1, 1).to(compute_dtype(logits)), labels)

    def begin(self, c: Tensor) -> Tensor:
        """The vector of the class (B, dim) -> inputs of the first scale (B, tokens, dim), without positions."""
        return c[:, None].expand(-1, self.config.sizes[0], -1)

    def logits(self, x: Tensor, c: Tensor) -> Tensor:
        """What the blocks made (B, T, dim) -> (B, groups, T, levels)."""
        return self.head(x, c).unflatten(-1, (self.config.groups, -1)).transpose(1, 2)

    def maps(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (B, groups, tokens) of the first scales -> for each what it and the coarser ones add up to, resized to
        the scale that follows (the last to its own), (B, its tokens, bits of a position)."""
        c, found, total = self.config, [], None
        latent = c.scales[-1], c.scales[-1]
        for index, part in enumerate(tokens.mT.split(c.sizes[: self._known(tokens)], 1)):
            codes = self.quantizer.codes(part.unflatten(1, (c.scales[index],) * 2), self.positions.dtype)
            added = self.scales.enlarged(codes, index, latent)
            total = added if total is None else total + added
            side = c.scales[min(index + 1, len(c.scales) - 1)]
            found.append(resized(total, (side, side)).flatten(2).mT)
        return found

    def _known(self, tokens: Tensor) -> int:
        """How many scales these are."""
        known, count = 0, tokens.shape[2]
        while count > 0:
            count, known = count - self.config.sizes[known], known + 1
        return known

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        *,
        classes: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        guidance: float = 0.0,
        cache: Cache | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw tokens (batch_size, groups, tokens) int64, in eval mode.

        Args:
            classes: (batch_size,) int64 of what is wanted; none where None.
            temperature: divides the logits; 0 takes the likeliest.
            top_k: only so many indices of each softmax.
            guidance: w of (1 + w k / (K - 1)) given the class less w k / (K - 1) without it, at scale k of K.
            cache: which keys and values are kept between scales, such as ``ScaleKV``; all where None.
            generator: source of randomness.

        Raises:
            ValueError: for sizes below 1, a negative temperature or guidance, or classes of another number.
        """
        if batch_size < 1 or guidance < 0:
            raise ValueError(f"batch_size must be at least 1 and guidance at least 0, got {batch_size}, {guidance}")
        draw = drawing(temperature, top_k, generator)
        training = self.training
        self.eval()
        try:
            pasts = None if cache is None else cache.pasts(self)
            return self.decode(batch_size, draw, classes=classes, guidance=guidance, pasts=pasts)
        finally:
            self.train(training)

    def decode(
        self,
        batch_size: int,
        choose: Callable[[Tensor], Tensor],
        *,
        classes: Tensor | None = None,
        guidance: float = 0.0,
        given: Tensor | None = None,
        stop: int | None = None,
        pasts: Sequence[Past] | None = None,
    ) -> Tensor:
        """Tokens (batch_size, groups, tokens), a scale at a time, each from the keys of the coarser ones.

        Args:
            choose: logits (B, groups, T, levels) of a scale -> its tokens (B, groups, T) int64.
            classes, guidance: as of ``sample``.
            given: tokens of the first scales, which are read in one pass.
            stop: scales that are made at most; all where None.
            pasts: empty ones, one a block, which hold its keys; those that keep all where None.
        """
        config, pasts = self.config, [Past() for _ in self.blocks] if pasts is None else pasts
        tokens = given if given is not None else self.positions.new_empty(batch_size, config.groups, 0).long()
        asked = self._classes(classes, tokens)
        both = torch.cat([asked, self._classes(None, tokens)]) if guidance else asked
        last = len(config.sizes) - 1
        read = 0  # tokens whose keys are held
        for index in range(self._known(tokens), len(config.sizes) if stop is None else stop):
            inputs = torch.cat([self.begin(asked), *map(self.embed, self.maps(tokens))][: index + 1], 1)
            x = (inputs + self.positions[: inputs.shape[1]])[:, read:]
            mask = self.mask[read : inputs.shape[1], : inputs.shape[1]]
            x = torch.cat([x, self._unconditional(x, index, read)]) if guidance else x
            for block, past in zip(self.blocks, pasts, strict=True):
                x = block(x, both, mask, past)
                past.end(index)
            read = inputs.shape[1]
            logits = self.logits(x[:, -config.sizes[index] :], both)
            if guidance:
                weight = guidance * index / max(1, last)
                logits = (1 + weight) * logits[: len(asked)] - weight * logits[len(asked) :]
            tokens = torch.cat([tokens, choose(logits)], 2)
        return tokens

    def _unconditional(self, x: Tensor, index: int, read: int) -> Tensor:
        """The inputs of the same scales without a class, which the first scale's are."""
        first = self.config.sizes[0]
        if read >= first:
            return x
        none = self.begin(self._classes(None, x)) + self.positions[:first]
        return torch.cat([none[:, read:], x[:, first - read :]], 1)

    def _classes(self, classes: Tensor | None, like: Tensor) -> Tensor:
        """Vectors (B, dim) of the classes, some hidden in training."""
        c = self.config
        return self.classes(wanted(classes, like, c.num_classes, c.class_drop_rate if self.training else 0.0))

    def no_weight_decay(self) -> set[str]:
        """The embeddings of classes and positions."""
        return {"classes.weight", "positions"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _run(self, block: nn.Module, *args: Tensor) -> Tensor:
        return recompute(block, *args) if self.grad_checkpointing and self.training else block(*args)

    def _check(self, tokens: Tensor) -> None:
        c = self.config
        shape = (c.groups, *c.image_shape)
        if tokens.dim() != 3 or tuple(tokens.shape[1:]) != shape or tokens.dtype != torch.int64:
            raise ValueError(
                f"tokens must be int64 of shape (batch, {shape[0]}, {shape[1]}), as WeTok.encode(images).mT gives "
                f"them, got {tokens.dtype} {tuple(tokens.shape)}"
            )


def drawing(
    temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Callable[[Tensor], Tensor]:
    """What chooses tokens (...) int64 of logits (..., levels); arguments as of ``NextScale.sample``.

    Raises:
        ValueError: for a negative temperature or a top_k below 1.
    """
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature must be at least 0 and top_k at least 1, got {temperature}, {top_k}")

    def draw(logits: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        logits = logits.to(compute_dtype(logits)) / temperature
        if top_k is not None and top_k < logits.shape[-1]:
            least = logits.topk(top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        flat = logits.softmax(-1).flatten(0, -2)
        return torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])

    return draw


_register = partial(
    register_model, NextScale, task="image-generation", family="next_scale",
    paper=Paper(
        "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction", "2404.02905", 2024
    ),
)  # fmt: skip


@_register()
def next_scale_nano():
    return NextScaleConfig()


@_register()
def next_scale_shapes_nano():
    return NextScaleConfig(scales=(1, 2, 3, 4, 6, 8), scale_decay=0.75, tokenizer="wetok_shapes_nano", dim=64, depth=6)


@_register()
def next_scale_shapes_small_nano():
    return NextScaleConfig(scales=(1, 2, 3, 4, 6, 8), scale_decay=0.75, tokenizer="wetok_shapes_nano", dim=32, depth=3)
