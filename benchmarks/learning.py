"""How the small models of benchmarks and claims learn: a warm-up, a cosine, gradients of a bounded norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.train.optim import warmup_cosine


def learn(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[int], Tensor], updates: int, *,
    warmup: int = 50, clip: float | None = 1.0, enough: Callable[[int], bool] | None = None,
) -> int:  # fmt: skip
    """Train in place.

    Args:
        loss: of an update, counted from 0; the model is in training mode then.
        updates: at most.
        warmup: updates of it.
        clip: largest norm of the gradients; None: any.
        enough: asked after each update, with their number, whether to stop.

    Returns:
        How many there were.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: warmup_cosine(k, warmup, updates))
    for step in range(updates):
        optimizer.zero_grad()
        model.train()
        loss(step).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        if enough is not None and enough(step + 1):
            return step + 1
    return updates
