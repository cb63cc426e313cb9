"""Codes of frames: groups of classes, one of which is drawn in each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype


def unimix(logits: Tensor, share: float) -> Tensor:
    """Logs of softmax with a share of the uniform distribution mixed in: no class is ever impossible.

    Args:
        logits: (..., classes).
        share: of the uniform distribution.

    Returns:
        (..., classes), of at least float32.
    """
    probabilities = logits.to(compute_dtype(logits)).softmax(-1)
    return (share / logits.shape[-1] + (1 - share) * probabilities).log()


def drawn(log_probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One class of each group, as zeros and a one; its gradient is that of the probabilities (straight through).

    Args:
        log_probabilities: (..., groups, classes).
        generator: of the draws; torch's own where None.
    """
    probabilities = log_probabilities.exp()
    flat = probabilities.detach().flatten(0, -2)
    index = picked(flat, generator).view(probabilities.shape[:-1])
    return _straight_through(index, probabilities)


def picked(shares: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Of rows of shares (N, K) an index each, (N,), drawn where the generator is: one of the CPU draws for a GPU."""
    where = shares.device if generator is None else generator.device
    return torch.multinomial(shares.to(where), 1, generator=generator)[:, 0].to(shares.device)


def likeliest(log_probabilities: Tensor) -> Tensor:
    """The likeliest class of each group, with the gradient of ``drawn``."""
    return _straight_through(log_probabilities.argmax(-1), log_probabilities.exp())


def divergence(of: Tensor, other: Tensor) -> Tensor:
    """KL divergence of independent groups (..., groups, classes), given as logs, from others; sums over groups, in
    nats."""
    return (of.exp() * (of - other)).sum((-1, -2))


def _straight_through(index: Tensor, probabilities: Tensor) -> Tensor:
    return F.one_hot(index, probabilities.shape[-1]) + (probabilities - probabilities.detach())
