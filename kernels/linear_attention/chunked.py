"""Linear attention as matrix products: quadratic within a chunk, recurrent between chunks (GLA, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.common.chunks import LOWEST, decays_of, in_chunks, out_of_chunks, scores_by_halves


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
    scores = decays.within * (scores_by_halves(q, k, gates) if vector and gates is not None else q @ k.mT)
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
