"""The least that a model of images must beat: each dimension by itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def histogram_bits_per_dim(train: Tensor, held_out: Tensor, num_levels: int) -> float:
    """Bits a dimension of `held_out` under a histogram of each dimension of `train`, with add-one smoothing.

    Args:
        train, held_out: `(N, ...)` and `(M, ...)` int64 levels in [0, num_levels), of the same trailing shape.
    """
    one_hot = F.one_hot(train.flatten(1), num_levels)  # (N, D, num_levels)
    probability = (one_hot.sum(0) + 1).double() / (len(train) + num_levels)  # (D, num_levels)
    return float(-probability.log2().gather(1, held_out.flatten(1).T).mean())
