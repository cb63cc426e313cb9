"""Patches that the encoder's class token looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.options import require_at_least
from zoo.vision_language.reduction import Reduction, Seen


@dataclass(frozen=True)
class VTCCLS(Reduction):
    r"""Keeps the patches to which the class token gives the most attention, in their order.

    .. math:: s_j = \sum_{l = \mathrm{start}}^{L - 2} \mathrm{mean}_h \; a^{(l, h)}_{\mathrm{class}, j}

    over the encoder's L blocks, the last one left out; one block alone counts where there is no other. No question
    is read, so what is kept is the same for all, and the best n are among the best n + 1. Where the class token itself
    is a feature, that stays.

    Args:
        keep: features that are left, that one among them; all where there are no more.
        start: first block that counts. The authors' code asks for it; from the first is our choice.

    Paper: Wang et al., "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", arXiv 2412.05819.
    """

    paper: ClassVar[str] = "2412.05819"

    keep: int
    start: int = 0

    def __post_init__(self):
        require_at_least(1, keep=self.keep)
        require_at_least(0, start=self.start)

    def count(self, features: int) -> int:
        """``keep``, or all."""
        return min(self.keep, features)

    def reduce(self, seen: Seen) -> Tensor:
        """(I, keep, D)."""
        features, first = seen.features, int(seen.class_feature)
        keep = self.count(features.shape[1]) - first
        if keep >= features.shape[1] - first:
            return features
        last = min(seen.num_blocks, len(seen.vision.layer_list()[1]) - 1)  # of 24 blocks LLaVA-1.5 runs 23
        last = max(last, self.start + 1)
        score = seen.class_attention(self.start, last).sum(0)  # (I, N)
        best = score.topk(keep, dim=1).indices.sort(dim=1).values + first
        kept = features.take_along_dim(best[..., None], 1)
        return torch.cat([features[:, :first], kept], dim=1) if first else kept
