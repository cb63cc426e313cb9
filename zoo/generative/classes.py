"""Classes that images are asked for, and those that are hidden in training, for guidance."""

from __future__ import annotations

import torch
from torch import Tensor


def check_classes(classes: Tensor, none: int) -> None:
    """Raise a ValueError unless these are integers from 0 to ``none``; on CUDA without waiting for the device, and in a
    traced program not at all."""
    if classes.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"classes must be int64, got {classes.dtype}: use classes.long()")
    if torch.compiler.is_compiling() or classes.device.type == "meta":
        return
    inside = (classes >= 0) & (classes <= none)
    message = f"classes must be from 0 to {none - 1}, or {none} for none" if none else "the model has no classes"
    if classes.device.type == "cuda":
        torch._assert_async(inside.all(), message)
    elif not inside.all():
        raise ValueError(f"{message}, got {classes[~inside][0].item()}")


def wanted(classes: Tensor | None, like: Tensor, none: int, hidden: float = 0.0) -> Tensor:
    """The class of each image (B,) int64.

    Args:
        classes: (B,); none for all where None.
        like: (B, ...), on the device of the result.
        none: the number that stands for no class.
        hidden: share that becomes none, at random.

    Raises:
        ValueError: for classes of another number, or that there are not.
    """
    if classes is None:
        classes = torch.full((len(like),), none, device=like.device)
    if classes.shape != (len(like),):
        raise ValueError(f"classes must have shape ({len(like)},), one an image, got {tuple(classes.shape)}")
    check_classes(classes, none)
    if hidden:
        classes = classes.masked_fill(torch.rand(classes.shape, device=like.device) < hidden, none)
    return classes
