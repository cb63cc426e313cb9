"""Linear attention as matrix products: quadratic within a chunk, recurrent between chunks (GLA, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.common.chunks import LOWEST, decays_of, in_chunks, out_of_chunks


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference; c chunks of q steps."""
    length, size, gates = q.shape[1], min(chunk_size, q.shape[1]), log_decay
    if gates is not None and gates.dim() == 3:
        gates = gates[..., None]
    gates = None if gates is None else gates.clamp(min=LOWEST)
    vector = gates is not None and gates.shape[-1] > 1
    if vector:
        size = 1 << (size - 1).bit_length()  # halved down to single steps
    q, k, v = (in_chunks(t, size) for t in (scale * q, k, v))  # (B, c, H, q, K)
    gates = None if gates is None else in_chunks(gates, size)
    segments = None if starts is None else in_chunks(starts[:, :, None, None].cumsum(1), size, "last")
    decays = decays_of(gates, segments, q)
    scores = decays.within * (_scores_by_halves(q, k, gates) if vector and gates is not None else q @ k.mT)
    state, before = _carry(state, (k * decays.to_end).mT @ v, decays.across)
    output = scores @ v + (q * decays.from_start) @ before
    return out_of_chunks(output, length), state


def _carry(state: Tensor, added: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence over chunks: final state, and the state before each chunk (B, c, H, K, V)."""
    before, across = [], across.expand(*added.shape[:3], *across.shape[-2:])
    for added_here, across_here in zip(added.unbind(1), across.unbind(1), strict=True):
        before.append(state)
        state = torch.addcmul(added_here, across_here, state)
    return state, torch.stack(before, dim=1)


def _scores_by_halves(q: Tensor, k: Tensor, gates: Tensor) -> Tensor:
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
