"""All that a tracker can be asked, for tests of every model: a clip alone does not reach what reads prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.video import Prompt


def prompts(frames: Tensor) -> list[Prompt | None]:
    """None, a box with a point on the object and one beside it, and a mask, which of every second clip is empty."""
    rows, size = len(frames), frames.shape[-1]
    corners = torch.tensor([size // 4, size // 8, size // 2, size - 1.0]).expand(rows, 4)
    points = torch.tensor([[size / 3, size / 2], [0.0, 3.0]]).expand(rows, 2, 2)
    mask = torch.zeros(rows, size, size, dtype=torch.bool)
    mask[::2, size // 4 :, : size // 2] = True
    return [None, Prompt(points, torch.tensor([[1, 0]]).expand(rows, 2), corners), Prompt(mask=mask)]


def loss(model: Any, frames: Tensor) -> Tensor:
    """A scalar that depends on everything a tracker says, of clips (B, T, C, S, S)."""
    found = frames.new_zeros(())
    for prompt in prompts(frames):
        found = found + model(frames, prompt).square().mean()
        for tracked in model.track(frames, prompt):
            found = found + sum(part.square().mean() for part in (tracked.score, tracked.masks, tracked.ious))
    return found
