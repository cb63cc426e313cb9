"""Demonstrations that are looked up in a bank, and answers that weigh several of them.

Paper: Mueller et al., "Meta-training with Demonstration Retrieval for Efficient Few-shot Learning", arXiv 2307.00119.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers.options import require_at_least


def nearest(queries: Tensor, keys: Tensor, count: int, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``count`` keys (M, D) whose products with each query (B, D) are the largest: indices, products (B, count).

    Args:
        ids: (B,) key that a query may not find, as it is the query itself; -1 for none.

    Raises:
        ValueError: for fewer keys than are asked for.
    """
    require_at_least(1, count=count)
    room = len(keys) - (ids is not None)
    if count > room:
        raise ValueError(f"count must be at most the {room} keys that there are, got {count}")
    scores = queries @ keys.mT
    if ids is not None:
        own = ids >= 0
        scores[own.nonzero()[:, 0], ids[own]] = -torch.inf
    found = scores.topk(count, dim=1)
    return found.indices, found.values


def marginal(log_probs: Tensor, scores: Tensor) -> Tensor:
    r"""log p(y | x), where each demonstration z is as likely as its score makes it.

    .. math::
        p(y | x) = \sum_i p(z_i | x) \, p(y | x, z_i), \quad p(z_i | x) = \frac{e^{s_i}}{\sum_j e^{s_j}}

    Their order does not count. Whether the authors weigh demonstrations so, as RAG does, or put them in a row before x,
    is not known to us; the latter is what `zoo.train.data.Demonstrations` makes.

    Args:
        log_probs: (B, k, ...), log p(y | x, z_i).
        scores: s (B, k).

    Returns:
        (B, ...).
    """
    weights = scores.log_softmax(1)
    return (log_probs + weights.view(*weights.shape, *[1] * (log_probs.dim() - 2))).logsumexp(1)


def bags(tokens: Tensor, vocab_size: int) -> Tensor:
    """How often each token occurs in rows (B, T), (B, vocab_size), of length 1: an encoder that never learns."""
    counts = torch.zeros(len(tokens), vocab_size).scatter_add_(1, tokens, torch.ones(tokens.shape))
    return counts / counts.norm(dim=1, keepdim=True)
