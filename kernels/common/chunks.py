"""Sequences in chunks and the decays within them: of linear attention, the delta rule and state-space duality.

Every decay is the exponential of a sum of log decays over the very steps it spans, never a quotient of two
exponentials, so that a decay of exp(-50) a step neither overflows nor hides the small ones around it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -1500.0  # of a log decay: exp of it is 0, also beside growth up to the largest float64, and sums stay exact


class Decays(NamedTuple):
    """Decays of one chunk of q steps, zero where a sequence starts in between; channels: K, or 1 for a scalar gate."""

    from_start: Tensor  # (B, c, H, q, channels): from before the chunk to after step i
    to_end: Tensor  # (B, c, H, q, channels): from after step j to the chunk's end
    across: Tensor  # (B, c, H, channels, 1): over the whole chunk
    within: Tensor  # (B, c, H, q, q): from after j to after i, lower triangular; for a vector gate what is masked


def decays_of(gates: Tensor | None, segments: Tensor | None, like: Tensor) -> Decays:
    """The decays of log gates (B, c, H, q, channels); ``segments`` (B, c, 1, q, 1) number the sequences."""
    ones = like.new_ones(like.shape[-2], like.shape[-2])
    lower = ones.tril()
    if gates is None:
        decays = Decays(ones[:, :1], ones[:, :1], ones[:1, :1], lower)
    else:
        since, until, total = lower @ gates, ones.triu(1) @ gates, gates.sum(-2)[..., None]
        within = decay_between(gates[..., 0]) if gates.shape[-1] == 1 else lower
        decays = Decays(since.exp(), until.exp(), total.exp(), within)
    if segments is None:
        return decays
    first = F.pad(segments[:, :-1, :, -1:], [0, 0, 0, 0, 0, 0, 1, 0])  # the segment that goes on into the chunk
    last = segments[..., -1:, :]
    masks = segments == first, segments == last, last == first, segments == segments.mT
    return Decays(*(decay * mask for decay, mask in zip(decays, masks, strict=True)))


def in_chunks(tensor: Tensor, size: int, filler: str = "zero") -> Tensor:
    """(B, T, H, D) to (B, c, H, size, D), behind the end zeros or the last value: no decay, no input."""
    missing = -tensor.shape[1] % size
    if filler == "zero":
        tensor = F.pad(tensor, [0, 0, 0, 0, 0, missing])
    else:
        tensor = torch.cat([tensor, tensor[:, -1:].expand(-1, missing, -1, -1)], dim=1)
    return tensor.unflatten(1, (-1, size)).transpose(2, 3).contiguous()


def out_of_chunks(tensor: Tensor, length: int) -> Tensor:
    """(B, c, H, size, D) to (B, T, H, D)."""
    return tensor.transpose(2, 3).flatten(1, 2)[:, :length]


def decay_between(gates: Tensor) -> Tensor:
    """exp of the sum of log gates over (j, i], lower triangular (..., i, j).

    Each sum has only its own steps, where the difference of two running sums would round away the small decays that
    follow a very large one, and its gradient would leak rounding into the sequences before j.
    """
    spans = gates[..., None, :].expand(*gates.shape, gates.shape[-1]).triu(1)  # (..., j, t), t > j
    return spans.cumsum(-1).mT.exp().tril()


def scores_by_halves(q: Tensor, k: Tensor, gates: Tensor) -> Tensor:
    """sum_c q_ic k_jc exp(sum of gates_c over (j, i]) for j <= i: (..., q, q), lower triangular.

    The steps of a chunk are paired up, the pairs paired up, and so on. Where i is in the later half of a pair and j in
    the earlier one, the decay splits at the boundary between them into a factor of i and one of j, both at most 1: a
    matrix product. (GLA takes such reference points at every 16 steps and single steps below; halving needs no step
    by step part, and log2(q) instead of 16 exponentials an element.)
    """
    blocks = (q * k).sum(-1)[..., None, None]  # (..., q / half, half, half)
    since, until = (x.unsqueeze(-2) for x in (gates, torch.zeros_like(gates)))  # sums from and to the block's ends
    half = 1
    while half < q.shape[-2]:
        (earlier, _), (_, later) = (x.unflatten(-2, (-1, 2, half)).unbind(-3) for x in (k, q))
        (first, second), (since_1, since_2), (until_1, until_2) = map(_pairs, (blocks, since, until))
        between = (later * since_2.exp()) @ (earlier * until_1.exp()).mT
        blocks = torch.cat([F.pad(first, [0, half]), torch.cat([between, second], dim=-1)], dim=-2)
        since, until = (
            torch.cat([since_1, since_2 + since_1[..., -1:, :]], dim=-2),
            torch.cat([until_1 + since_2[..., -1:, :], until_2], dim=-2),
        )
        half *= 2
    return blocks.squeeze(-3)


def _pairs(blocks: Tensor) -> tuple[Tensor, ...]:
    """(..., n, half, D) to the earlier and the later blocks of the pairs, (..., n / 2, half, D) each."""
    return blocks.unflatten(-3, (-1, 2)).unbind(-3)
