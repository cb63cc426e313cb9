"""Block-sparse attention by gathering: each block of queries against the key blocks it sees, laid side by side."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, block_mask: Tensor, block_size: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference. A query block costs as much as the head that sees most keys."""
    heads, length = _gathered_heads(k, block_mask), q.shape[1]
    rows, keys, values = _rows(q, heads), _in_blocks(k, block_size), _in_blocks(v, block_size)
    output = rows.new_zeros(*rows.shape[:4], v.shape[-1])
    total = rows.new_full(rows.shape[:4], torch.inf)
    for queries, index, seen in _blocks(block_mask, block_size, length, k.shape[1], causal):
        where = _where(index, keys, heads)
        weights = _scores(rows[:, :, queries], keys[where], seen, scale)
        highest, sums = _exponentiate(weights)
        summed = (weights.flatten(2, 3) @ values[where].flatten(2, 3)).view(*weights.shape[:4], v.shape[-1])
        output[:, :, queries] = summed / sums.masked_fill(sums == 0, 1.0)
        total[:, :, queries] = (highest + sums.log()).masked_fill_(sums == 0, torch.inf)[..., 0]
    return _unrows(output), _unrows(total[..., None])[..., 0].transpose(1, 2)


def backward(doutput, output, total, q, k, v, block_mask, block_size, causal, scale) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the weights are computed again, and from them what output and total would tell."""
    heads, (length, groups, key_length) = _gathered_heads(k, block_mask), (q.shape[1], k.shape[2], k.shape[1])
    rows, grads = _rows(q, heads), _rows(doutput, heads)
    keys, values = _in_blocks(k, block_size), _in_blocks(v, block_size)
    dq = torch.zeros_like(rows)
    dk, dv = (x.new_zeros(x.shape[0], heads, *x.shape[2:]) for x in (keys, values))
    for queries, index, seen in _blocks(block_mask, block_size, length, key_length, causal):
        where = _where(index, keys, heads)
        query, grad, key = rows[:, :, queries], grads[:, :, queries], keys[where]
        weights = _scores(query, key, seen, scale)
        sums = _exponentiate(weights)[1]
        weights.div_(sums.masked_fill_(sums == 0, 1.0))
        dweights = (grad.flatten(2, 3) @ values[where].flatten(2, 3).mT).view_as(weights)
        dscores = dweights.sub_((weights * dweights).sum(-1, keepdim=True)).mul_(weights).mul_(scale).flatten(2, 3)
        dq[:, :, queries] = (dscores @ key.flatten(2, 3)).view_as(query)
        target = _where(index, dk, heads)  # no block twice: nothing is lost or left to the order of additions
        dk[target] += (dscores.mT @ query.flatten(2, 3)).unflatten(2, (-1, block_size))
        dv[target] += (weights.flatten(2, 3).mT @ grad.flatten(2, 3)).unflatten(2, (-1, block_size))
    dk, dv = (d.flatten(2, 3)[:, :, :key_length].unflatten(1, (groups, -1)).sum(2).transpose(1, 2) for d in (dk, dv))
    return _unrows(dq), dk, dv


def active_blocks(
    block_mask: Tensor, block_size: int, length: int, keys: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The mask without blocks in the future; for each query block the key blocks, the active first; their number.

    All contiguous: boolean (B or 1, H or 1, n, m), int64 of that shape, int64 (B or 1, H or 1, n).
    """
    if causal:
        last = torch.arange(1, block_mask.shape[-2] + 1, device=block_mask.device) * block_size
        last = last.clamp(max=length) + (keys - length - 1)
        begin = torch.arange(block_mask.shape[-1], device=block_mask.device) * block_size
        block_mask = block_mask & (begin <= last[:, None])
    block_mask = block_mask.contiguous()
    order = block_mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    return block_mask, order, block_mask.sum(-1)


def _blocks(
    block_mask: Tensor, block_size: int, length: int, keys: int, causal: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For each query block that sees a key: its rows, key blocks (B or 1, H or 1, A), mask (..., q or 1, 1, n)."""
    block_mask, order, counts = active_blocks(block_mask, block_size, length, keys, causal)
    within = torch.arange(block_size, device=block_mask.device)
    for block, most in enumerate(counts.amax((0, 1)).tolist() if len(counts) else ()):
        if most == 0:
            continue
        rows = slice(block * block_size, min((block + 1) * block_size, length))
        index = order[:, :, block, :most]
        place = (index[..., None] * block_size + within).flatten(2)
        seen = block_mask[:, :, block].gather(2, index).repeat_interleave(block_size, dim=2) & (place < keys)
        seen = seen[:, :, None]
        if causal:
            query = torch.arange(rows.start, rows.stop, device=block_mask.device) + (keys - length)
            seen = seen & (place[:, :, None] <= query[:, None])
        yield rows, index, seen[:, :, :, None]


def _scores(query: Tensor, key: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Of rows (B, h, q, g, K) and blocks (B, h, A, block, K): (B, h, q, g, n), minus infinity where unseen."""
    key = key.flatten(2, 3)
    scores = (query.flatten(2, 3) @ key.mT).view(*query.shape[:4], key.shape[2]).mul_(scale)
    return scores.masked_fill_(~seen, -torch.inf)


def _exponentiate(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores to exp(score - highest), in place; the highest (0 where none is seen) and the sums."""
    highest = scores.amax(-1, keepdim=True)
    highest.masked_fill_(highest == -torch.inf, 0.0)
    return highest, scores.sub_(highest).exp_().sum(-1, keepdim=True)


def _gathered_heads(k: Tensor, block_mask: Tensor) -> int:
    """Heads of the gathered keys: those of k, or where the mask tells the heads of q apart, those."""
    return max(k.shape[2], block_mask.shape[1])


def _where(index: Tensor, blocks: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices into blocks (B, G, m, ...) of the listed ones for each of ``heads`` heads."""
    batch = torch.arange(blocks.shape[0], device=index.device)[:, None, None]
    head = torch.arange(heads, device=index.device)[:, None] // (heads // blocks.shape[1])
    return batch, head, index


def _in_blocks(tensor: Tensor, block_size: int) -> Tensor:
    """(B, S, G, D) -> (B, G, m, block, D), padded with zeros."""
    padded = F.pad(tensor.transpose(1, 2), (0, 0, 0, -tensor.shape[1] % block_size))
    return padded.unflatten(2, (-1, block_size))


def _rows(tensor: Tensor, heads: int) -> Tensor:
    """(B, T, H, D) -> (B, h, T, H / h, D), contiguous."""
    return tensor.unflatten(2, (heads, -1)).transpose(1, 2).contiguous()


def _unrows(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2).flatten(2, 3)
