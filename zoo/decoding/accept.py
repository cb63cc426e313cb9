"""The one place where a drafted token is accepted, or replaced."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.generate.logits import draw


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
    said, index = accept_one_of(target, [(token, draft)], generator)
    return said, index == 0


def accept_one_of(
    target: Tensor, candidates: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""The same with several drafted tokens: each that is refused leaves its residual as the law for the next.

    What comes out has the law p if each token was drawn from its law, given those before it.

    Args:
        target: p (B, vocab_size).
        candidates: tokens (B,) and the laws (B, vocab_size) that they were drawn from; one of no probability in its
            own law is none.
        generator: source of randomness.

    Returns:
        The tokens (B,), and the numbers (B,) of the candidates that they are, -1 for none.

    Paper: Miao et al., "SpecInfer", arXiv 2305.09781, section 4.3.
    """
    left, chosen = target, torch.full_like(candidates[0][0] if candidates else target[:, 0].long(), -1)
    for index, (token, law) in enumerate(candidates):
        p, q = (one.gather(1, token[:, None])[:, 0] for one in (left, law))
        chance = torch.where(q > 0, p / q, 0).clamp(max=1)
        open = chosen < 0
        accepted = torch.bernoulli(chance, generator=generator).bool() & open
        chosen = chosen.masked_fill(accepted, index)
        rest = (left - law).clamp(min=0)
        total = rest.sum(-1, keepdim=True)
        left = torch.where((total > 0) & open[:, None], rest / total, left)  # equal laws accept it all
    said = draw(left, generator)
    for index, (token, _) in enumerate(candidates):
        said = torch.where(chosen == index, token, said)
    return said, chosen
