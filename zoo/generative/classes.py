"""Classes that images are asked for, and those that are hidden in training, for guidance."""

from __future__ import annotations

import torch
from torch import Tensor


def wanted(classes: Tensor | None, like: Tensor, none: int, hidden: float = 0.0) -> Tensor:
    """The class of each image (B,) int64.

    Args:
        classes: (B,); none for all where None.
        like: (B, ...), on the device of the result.
        none: the number that stands for no class.
        hidden: share that becomes none, at random.

    Raises:
        ValueError: for classes of another number.
    """
    if classes is None:
        classes = torch.full((len(like),), none, device=like.device)
    if classes.shape != (len(like),):
        raise ValueError(f"classes must have shape ({len(like)},), one an image, got {tuple(classes.shape)}")
    if hidden:
        classes = classes.masked_fill(torch.rand(classes.shape, device=like.device) < hidden, none)
    return classes
