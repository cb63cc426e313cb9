"""Attention within a sliding window block by block: each block of queries against the span of keys it sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SMALLEST_BLOCK, LARGEST_BLOCK = 64, 256  # queries a block: the window where it lies between, so half a span is seen


def forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference."""
    groups = k.shape[2]
    rows, k, v = _rows(q, groups), _heads_first(k), _heads_first(v)
    output, total = rows.new_empty(*rows.shape[:3], v.shape[-1]), rows.new_empty(rows.shape[:3])
    for queries, spans, seen in _blocks(q.shape[1], k.shape[1], first, window, sinks, groups, q.device):
        scores = _scores(rows[:, queries], _gather(k, spans), seen, scale)
        highest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(highest).exp_()
        normaliser = weights.sum(-1, keepdim=True)
        summed = weights.flatten(1, 2) @ _gather(v, spans)
        output[:, queries] = summed.view(*weights.shape[:3], v.shape[-1]) / normaliser
        total[:, queries] = (highest + normaliser.log())[..., 0]
    return _unrows(output, groups), _unrows(total[..., None], groups)[..., 0].transpose(1, 2)


def backward(doutput, output, total, q, k, v, first, window, sinks, scale) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the weights are computed again, and from them what output and total would tell.

    With the mean of ``dweights`` under the very same weights, the gradient of a score that hardly matters is as small
    as it should be; doutput . output differs from that mean by a rounding.
    """
    groups = k.shape[2]
    rows, grads = _rows(q, groups), _rows(doutput, groups)
    keys, values = _heads_first(k), _heads_first(v)
    dq, dk, dv = torch.empty_like(rows), torch.zeros_like(keys), torch.zeros_like(values)
    for queries, spans, seen in _blocks(q.shape[1], k.shape[1], first, window, sinks, groups, q.device):
        query, grad, key = rows[:, queries], grads[:, queries], _gather(keys, spans)
        weights = _scores(query, key, seen, scale).softmax(-1)
        dweights = (grad.flatten(1, 2) @ _gather(values, spans).mT).view_as(weights)
        dscores = dweights.sub_((weights * dweights).sum(-1, keepdim=True)).mul_(weights).mul_(scale).flatten(1, 2)
        dq[:, queries] = (dscores @ key).view_as(query)
        _scatter(dk, spans, dscores.mT @ query.flatten(1, 2))
        _scatter(dv, spans, weights.flatten(1, 2).mT @ grad.flatten(1, 2))
    dk, dv = (d.view(k.shape[0], groups, *d.shape[1:]).transpose(1, 2) for d in (dk, dv))
    return _unrows(dq, groups), dk, dv


def _blocks(
    length: int, keys: int, first: Tensor | None, window: int, sinks: int, groups: int, device: torch.device
) -> Iterator[tuple[slice, list[slice], Tensor]]:
    """For each block of q queries: its rows, the slices of n keys it may see and the mask (pairs or 1, q, 1, n)."""
    block = min(max(window, SMALLEST_BLOCK), LARGEST_BLOCK)
    position = torch.arange(keys, device=device)
    if first is not None:
        first = first.repeat_interleave(groups, dim=0)[:, :, None]  # (pairs, T, 1)
    for start in range(0, length, block):
        stop = min(start + block, length)
        begin, end = max(0, keys - length + start - window + 1), keys - length + stop
        spans = [slice(begin, end)] if min(sinks, begin) == 0 else [slice(0, min(sinks, begin)), slice(begin, end)]
        key = torch.cat([position[span] for span in spans])
        query = position[keys - length + start : end, None]
        seen = (key <= query) & ((key > query - window) | (key < sinks))
        seen = seen[None] if first is None else seen & (key >= first[:, start:stop])
        yield slice(start, stop), spans, seen[:, :, None]


def _scores(query: Tensor, key: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Of rows (pairs, q, g, K) and keys (pairs, n, K): (pairs, q, g, n), minus infinity where unseen."""
    scores = (query.flatten(1, 2) @ key.mT).view(*query.shape[:3], key.shape[1]).mul_(scale)
    return scores.masked_fill_(~seen, -torch.inf)


def _gather(tensor: Tensor, spans: list[slice]) -> Tensor:
    return tensor[:, spans[0]] if len(spans) == 1 else torch.cat([tensor[:, span] for span in spans], 1)


def _scatter(tensor: Tensor, spans: list[slice], added: Tensor) -> None:
    for span, part in zip(spans, added.split([s.stop - s.start for s in spans], 1), strict=True):
        tensor[:, span] += part


def _heads_first(tensor: Tensor) -> Tensor:
    """(B, S, G, D) -> (B * G, S, D), contiguous."""
    return tensor.transpose(1, 2).flatten(0, 1).contiguous()


def _rows(tensor: Tensor, groups: int) -> Tensor:
    """(B, T, H, D) -> (B * G, T, H / G, D), contiguous: a block of queries is a slice of rows."""
    return tensor.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def _unrows(rows: Tensor, groups: int) -> Tensor:
    """The inverse."""
    return rows.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2, 3)
