"""The one place where a drafted token is accepted, or replaced."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(chances: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token a row (B,) of probabilities (B, vocab_size)."""
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


def accept(
    target: Tensor, draft: Tensor, token: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""A token drawn from the draft's law q becomes one of the target's law p.

    .. math::
        P(\text{accept } x) = \min(1, p(x) / q(x)), \quad \text{else } y \sim \max(p - q, 0) / \sum \max(p - q, 0)

    What comes out has the law p whatever q is. Where each law is one token, as at temperature 0, that of the target
    comes out.

    Args:
        target: p (B, vocab_size).
        draft: q (B, vocab_size), from which ``token`` was drawn.
        token: x (B,).
        generator: source of randomness.

    Returns:
        The tokens (B,), and which are the drafted ones, accepted (B,) bool.

    Papers: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192, section
    2.3; Chen et al., arXiv 2302.01318.
    """
    p, q = (law.gather(1, token[:, None])[:, 0] for law in (target, draft))
    accepted = torch.bernoulli((p / q).clamp(max=1), generator=generator).bool()
    rest = (target - draft).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, target)  # equal laws accept everything
    return torch.where(accepted, token, draw(rest, generator)), accepted
