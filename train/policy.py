"""A language model as a policy: what it answers, how likely it finds answers, and what is learnt from that."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.kernels.dispatch import compute_dtype


def answered(
    model: Any,
    prompts: Tensor,
    length: int,
    *,
    seed: int,
    copies: int = 1,
    greedy: bool = False,
    top_p: float | None = None,
    end: int | None = None,
) -> Tensor:
    """Prompts (B, P) with answers of a model in eval mode, (B copies, P + length), copies of a prompt side by side.

    Args:
        model: a language model, left as it was.
        length: tokens of an answer; what ended earlier is filled with ``end``.
        seed: of the draws, which are at temperature 1.
        copies: answers to each prompt.
        greedy: the likeliest token at each step, in place of a draw.
        top_p: draw among the likeliest that together reach this probability; of all where None.
        end: token that ends an answer.
    """
    options: dict[str, Any] = {"temperature": 0.0} if greedy else {"top_p": top_p, "num_samples": copies}
    options |= {} if end is None else {"eos_token": end}
    source = torch.Generator(device=prompts.device).manual_seed(seed)
    said = zoo.generate(model, prompts, length, generator=source, **options)
    return F.pad(said, (0, prompts.shape[1] + length - said.shape[1]), value=end or 0)


def log_probs(model: Any, tokens: Tensor, start: int) -> Tensor:
    """log p(token t | those before it) for t from ``start`` on, (B, T - start), of tokens (B, T); in nats."""
    logits = model(tokens, logits_to_keep=tokens.shape[1] - start + 1)[:, :-1]
    return logits.to(compute_dtype(logits)).log_softmax(-1).gather(2, tokens[:, start:, None])[..., 0]


def until_end(answers: Tensor, end: int | None) -> Tensor:
    """Which tokens of answers (B, A) are said: up to the first ``end``, with it."""
    if end is None:
        return torch.ones_like(answers, dtype=torch.bool)
    ends = (answers == end).long()
    return ends.cumsum(1) - ends == 0


def preference_loss(margins: Tensor, beta: float) -> Tensor:
    r"""DPO: :math:`-\log \sigma(\beta (m_{chosen} - m_{rejected}))`, the mean over pairs.

    Args:
        margins: (B, 2), log pi(answer) - log pi_ref(answer) of the answer preferred, and of the other.
        beta: how much a margin counts.

    Paper: Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290.
    """
    return -F.logsigmoid(beta * (margins[:, 0] - margins[:, 1])).mean()


def online_divergence(own: Tensor, base: Tensor, copies: int = 1) -> Tensor:
    r"""What has, in the mean over answers y of the policy pi, the gradient of KL(pi || pi_ref).

    .. math::
        \log \pi(y) \; \mathrm{sg}[r - \bar r], \quad r = \log \pi(y) - \log \pi_{ref}(y)

    with rbar the mean over the other answers to the same prompt, or 0 for one answer. Its value means nothing; at
    pi = pi_ref its gradient is 0 for any answers.

    Args:
        own: (B copies,) log pi of whole answers, sums over their tokens.
        base: the same of pi_ref.
        copies: answers to each prompt, side by side.
    """
    own = own.view(-1, copies)
    ratio = own.detach() - base.detach().view(-1, copies)
    others = (ratio.sum(1, keepdim=True) - ratio) / max(1, copies - 1)
    return (own * (ratio - others)).mean()


def reinforce_loss(own: Tensor, said: Tensor, advantages: Tensor, *, gamma: float, penalties: Tensor | None) -> Tensor:
    r"""REINFORCE with what a token is worth given, as ReMax takes it.

    .. math::
        -\frac{\sum_t m_t R_t \log \pi(y_t)}{\sum_t m_t}, \quad R_t = \gamma^{L - t} A + p_t, \quad t = 0 .. L - 1

    Args:
        own: (B, A) log pi of the tokens.
        said: m (B, A), which tokens count; L of them in a row.
        advantages: A (B,).
        gamma: discount; the last token's share is gamma.
        penalties: p (B, A), such as a weight times log pi_ref - log pi of the token alone; None for none.
    """
    left = said.sum(1, keepdim=True) - torch.arange(said.shape[1], device=said.device)  # L - t
    returns = gamma ** left.clamp(min=0).to(own.dtype) * advantages[:, None].to(own.dtype)
    if penalties is not None:
        returns = returns + penalties
    return -(said * returns.detach() * own).sum() / said.sum()
