"""Frames of a clip: a few tokens for each segment, and what the class tokens saw of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.options import require_at_least
from zoo.layers.tokens import match_pairs, merge
from zoo.vision_language.reduction import Reduction, Seen


@dataclass(frozen=True)
class LongVLM(Reduction):
    r"""The patches of each segment of a clip are merged, pair by pair, in rounds; class tokens of all frames go first.

    In a round every second token of a segment looks for its most similar partner among the others, by the cosine of the
    mean over ``heads`` equal parts of their channels, and the ``merges`` most similar pairs become their mean, each
    counted as often as patches went into it (Token Merging). So

    .. math:: n = s \, (P - \textstyle\sum_i \min(r_i, \lfloor t_i / 2 \rfloor)) + c

    tokens are left of s segments of P patches, t_i of them before round i. The first c are the class tokens that left
    the last c blocks, each the mean over the frames. What is merged keeps the order of time and place; the authors'
    loses it within a segment.

    Args:
        images: frames of a clip.
        segments: equal parts of it.
        merges: pairs that are merged in each round; none leaves all patches as they are.
        classes: blocks whose class tokens are read; 0 for none.
        heads: parts whose mean tells what is similar.

    Raises:
        ValueError: for frames that are no equal segments, or a number out of range.

    Papers: Weng et al., "LongVLM", arXiv 2404.03384; merging: Bolya et al., arXiv 2210.09461.
    """

    paper: ClassVar[str] = "2404.03384"

    images: int = 100
    segments: int = 10
    merges: tuple[int, ...] = (1280, 640, 320, 160, 80, 40, 10)
    classes: int = 5
    heads: int = 16

    def __post_init__(self):
        require_at_least(1, images=self.images, segments=self.segments, heads=self.heads)
        require_at_least(0, classes=self.classes, merges=min(self.merges, default=0))
        if self.images % self.segments:
            raise ValueError(f"segments must divide the {self.images} frames of a clip, got {self.segments}")

    def count(self, features: int) -> int:
        """Of all frames; a feature of the class token is no patch, and the classes go in its place."""
        return self.classes + self.segments * self._left(self.images // self.segments * features)

    def reduce(self, seen: Seen) -> Tensor:
        """(I / images, n, D).

        Raises:
            ValueError: for fewer blocks than classes, or channels that are no equal parts.
        """
        if seen.class_feature:
            raise ValueError("LongVLM reads patches, and class tokens by classes=: give the model class_feature=False")
        if self.classes > seen.num_blocks:
            raise ValueError(f"classes must be at most the {seen.num_blocks} blocks that were run, got {self.classes}")
        patches = seen.patches
        if patches.shape[-1] % self.heads:
            raise ValueError(f"heads must divide the {patches.shape[-1]} channels of a feature, got {self.heads}")
        parts = patches.unflatten(0, (-1, self.images // self.segments)).flatten(1, 2)  # (clips segments, P, D)
        local = self._merged(parts).unflatten(0, (-1, self.segments)).flatten(1, 2)
        if not self.classes:
            return local
        tokens = seen.stream[-self.classes :]
        tokens = [seen.vision.forward_norm(x) for x in tokens] if seen.normed else tokens
        classes = torch.cat([seen.vision.prefix_tokens(x) for x in tokens], dim=1)  # (I, classes, D)
        return torch.cat([classes.unflatten(0, (-1, self.images)).mean(1), local], dim=1)

    def _left(self, tokens: int) -> int:
        for pairs in self.merges:
            tokens -= min(pairs, tokens // 2)
        return tokens

    def _merged(self, x: Tensor) -> Tensor:
        size = torch.ones_like(x[..., 0], dtype=torch.promote_types(x.dtype, torch.float32))
        for pairs in self.merges:
            length = x.shape[1]
            pairs = min(pairs, length // 2)
            if pairs:
                keys = x.unflatten(-1, (self.heads, -1)).mean(-2)
                target = match_pairs(keys, size, min(0.5, (pairs + 0.5) / length))
                x, size = merge(x, size, target, length - pairs)
        return x
