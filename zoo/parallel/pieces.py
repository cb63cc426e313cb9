r"""Attention of one part of a sequence to another, and how what was found over some keys is merged with the rest.

Process r of P has the r-th and the r-th last of 2 P pieces of the sequence, and of any two processes' queries and keys
one half is as much work as of any others'. Outputs o go with the logarithms l of the sums of their exponentials:

.. math:: o \leftarrow o - \sigma(l' - l) (o - o'), \qquad l \leftarrow l - \log \sigma(l - l')
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.parallel.sights import Block

LOGITS = 2**24  # that exist at once


def seen(queries: int, keys: int) -> tuple[int | None, int | None]:
    """Which half of the queries of one process sees which half of the keys of another; None for both halves."""
    if queries == keys:
        return None, None
    return (None, 0) if queries > keys else (1, None)


def half(which: int | None, x: Tensor) -> Tensor:
    """Of x (B, H, T, ...) the first or second half of the tokens; for None all."""
    return x if which is None else x.chunk(2, 2)[which]


class Merged:
    """Outputs (B, H, T, d) of queries over more and more keys, and the logarithms (B, H, T) of their sums."""

    def __init__(self, q: Tensor):
        wide = compute_dtype(q)
        self.output = torch.zeros_like(q, dtype=wide)
        self.lse = torch.full(q.shape[:3], -torch.inf, dtype=wide, device=q.device)

    def add(self, queries: int | None, output: Tensor, lse: Tensor) -> None:
        """What some of the queries have found over further keys."""
        held, sums = half(queries, self.output), half(queries, self.lse)
        share = torch.sigmoid(lse - sums).masked_fill(lse == -torch.inf, 0.0)  # none of what found nothing
        held -= share[..., None] * (held - output)
        sums.copy_(torch.logaddexp(sums, lse))


def attended(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, block: Block | None = None
) -> tuple[Tensor, Tensor]:
    """q (B, H, T, d) over k and v (B, G, S, d): the output and the logarithm (B, H, T) of its sum, float32 or wider.

    Args:
        causal: the keys are those of the queries, which see none after their own.
        block: where they stand, if some see others yet; a query that sees no key finds 0, and -inf for its sum.
    """
    outputs, sums, wide = [], [], compute_dtype(q)
    for start, part in _rows(q, k, block):
        near, hidden = _hidden(start, part, k, causal, block)
        logits = _logits(part, k[:, :, near], scale, hidden)  # (B, G, H / G, t, S)
        lse = logits.logsumexp(-1)
        largest = lse.masked_fill(lse == -torch.inf, 0.0)
        outputs.append(((logits - largest[..., None]).exp() @ v[:, :, near].to(wide)[:, :, None]).flatten(1, 2))
        sums.append(lse.flatten(1, 2))
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def gradients(
    q: Tensor, dy: Tensor, lse: Tensor, delta: Tensor, k: Tensor, v: Tensor, scale: float, *,
    causal: bool = False, block: Block | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Those of q, k and v by what q (B, H, T, d) gets over k and v, given the sums over all keys and the products
    ``delta`` (B, H, T) of outputs and their gradients; float32 or wider. ``causal``, ``block``: see ``attended``."""
    wide, found = lse.dtype, []
    dk, dv = (torch.zeros_like(t, dtype=wide) for t in (k, v))
    for start, part in _rows(q, k, block):
        rows = slice(start, start + part.shape[2])
        near, hidden = _hidden(start, part, k, causal, block)
        by_group = [_grouped(t[:, :, rows].to(wide), k) for t in (q, dy, lse[..., None], delta[..., None])]
        queries, outer, sums, products = by_group  # (B, G, H / G, t, ...)
        weights = (_logits(part, k[:, :, near], scale, hidden) - sums).exp()
        dlogits = weights * (outer @ v[:, :, near].to(wide)[:, :, None].mT - products) * scale
        found.append((dlogits @ k[:, :, near].to(wide)[:, :, None]).flatten(1, 2))
        dk[:, :, near] += (dlogits.mT @ queries).sum(2)
        dv[:, :, near] += (weights.mT @ outer).sum(2)
    return torch.cat(found, 2), dk, dv


def _rows(q: Tensor, k: Tensor, block: Block | None) -> list[tuple[int, Tensor]]:
    """As many queries at once as there is room for logits of, and as a block says."""
    count = max(1, LOGITS // max(1, q.shape[:2].numel() * k.shape[2]))
    count = count if block is None else min(count, block.rows)
    return [(start, q[:, :, start : start + count]) for start in range(0, q.shape[2], count)]


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    return x.unflatten(1, (k.shape[1], -1))


def _hidden(
    start: int, part: Tensor, k: Tensor, causal: bool, block: Block | None
) -> tuple[slice, Tensor | None]:  # fmt: skip
    """Which keys the queries from ``start`` on read, and which of these, (t, S) or (B, 1, 1, t, S), are hidden."""
    if block is not None:
        stop = start + part.shape[2]
        seen = block.mask(start, stop, part.device)
        return block.near(start, stop), None if seen is None else ~seen
    shape = part.shape[2], k.shape[2]
    hidden = torch.ones(shape, dtype=torch.bool, device=part.device).triu(start + 1) if causal else None
    return slice(None), hidden


def _logits(q: Tensor, k: Tensor, scale: float, hidden: Tensor | None) -> Tensor:
    """(B, G, H / G, t, S), -inf where a key is hidden."""
    wide = compute_dtype(q)
    logits = _grouped(q.to(wide), k) @ k.to(wide)[:, :, None].mT * scale
    return logits if hidden is None else logits.masked_fill(hidden, -torch.inf)
