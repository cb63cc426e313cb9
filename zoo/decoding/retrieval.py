"""Which parts of a long prompt belong to its end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.language.base import LanguageModel

Scorer = Callable[[LanguageModel, Tensor, Tensor, int], Tensor]


def lexical(model: LanguageModel, chunks: Tensor, query: Tensor, ngram: int) -> Tensor:
    r"""How much chunks (n, L) have in common with a query (Q,): (n,), between 0 and 1.

    The cosine of what they hold, where a run of ``ngram`` tokens counts by how few chunks have it,

    .. math:: s_i = \cos(w \odot c_i, w \odot q), \quad w_g = \ln(1 + n / n_g)

    with c and q 1 where a run occurs. It needs no training, and finds names and numbers that a model's vectors blur.
    """
    every = torch.cat([chunks.unfold(1, ngram, 1).flatten(0, 1), query.unfold(0, ngram, 1)])
    number = every.unique(dim=0, return_inverse=True)[1]
    count, kinds = len(query) - ngram + 1, int(number.max()) + 1
    held = torch.zeros(len(chunks), kinds, device=chunks.device)
    held.scatter_(1, number[:-count].view(len(chunks), -1), 1.0)
    asked = torch.zeros(kinds, device=chunks.device).scatter_(0, number[-count:], 1.0)
    weight = (1 + len(chunks) / held.sum(0).clamp(min=1)).log()
    return torch.cosine_similarity(held * weight, (asked * weight)[None], dim=1)


def embedded(model: LanguageModel, chunks: Tensor, query: Tensor, ngram: int) -> Tensor:
    """The cosine of the mean embeddings of chunks (n, L) and of a query (Q,): (n,), with the model's own table, from
    which the mean of all chunks is taken."""
    vectors, asked = model.embed(chunks).mean(1), model.embed(query[None]).mean(1)
    centre = vectors.mean(0)
    return torch.cosine_similarity(vectors - centre, asked - centre, dim=1)


SCORERS: dict[str, Scorer] = {"lexical": lexical, "embedding": embedded}


def shortened(
    model: LanguageModel,
    tokens: Tensor,
    *,
    budget: int,
    chunk: int,
    query: int,
    scorer: str = "lexical",
    ngram: int = 4,
) -> Tensor:
    """At most ``budget`` of a prompt's tokens (T,), in their order: the chunks most like its end, and that end.

    Args:
        model: of whose table the embeddings are.
        tokens: (T,).
        budget: tokens that are kept.
        chunk: tokens of a chunk; the last one before the end may reach into it.
        query: tokens of the end, which is what chunks are compared with.
        scorer: "lexical" or "embedding".
        ngram: tokens of a run that is compared.
    """
    length = len(tokens)
    if length <= budget:
        return tokens
    query = min(query, budget)
    count = (length - query) // chunk
    room = (budget - query) // chunk
    before, end = tokens[: count * chunk].view(count, chunk), tokens[-query:]
    room = min(room, count)
    if room == 0:
        return end
    score = SCORERS[scorer](model, before, end, min(ngram, chunk, query))
    best = score.topk(room).indices.sort().values
    return torch.cat([before[best].flatten(), end])
