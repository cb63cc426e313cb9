r"""The generalised delta rule in chunks: a triangular system for what each step reads, as for the delta rule.

With S the state before a chunk, :math:`\gamma_i` the decay of each key channel from before the chunk to after step i
and :math:`\Gamma_{ij}` the one from after step j, the state after step i and what step i reads of the one before are

.. math::
    S_i = \gamma_i S + \sum_{j \le i} \Gamma_{ij} (k_j v_j^\top + b_j u_j^\top), \quad
    u_i = S_{i-1}^\top a_i
        = (\gamma_{i-1} a_i)^\top S + \sum_{j < i} a_i^\top \Gamma_{i-1, j} (k_j v_j^\top + b_j u_j^\top)

so that the u of a chunk solve a unit lower triangular system whose right-hand side is linear in S. It is solved in all
chunks at once; only the products with the state are sequential. Step i reads what step i - 1 left, so its a is handled
as a query of step i - 1. As in the delta rule the readings cancel most of S: all of it is in float64, where the device
has it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.common.chunks import LOWEST, decays_of, in_chunks, out_of_chunks, scores_by_halves

LARGEST_CHUNK = 32  # longer ones only add work in the triangular system


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    state: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference; c chunks of C steps, a power of two."""
    length, dtype = q.shape[1], state.dtype
    size = 1 << (min(chunk_size, LARGEST_CHUNK, length) - 1).bit_length()
    wide = dtype if q.device.type == "mps" else torch.float64
    q, k, v, a, b, log_decay, state = (t.to(wide) for t in (scale * q, k, v, a, b, log_decay, state))
    q, k, v, a, b, gates = (in_chunks(t, size) for t in (q, k, v, a, b, log_decay.clamp(min=LOWEST)))
    segments = None if starts is None else in_chunks(starts[:, :, None, None].cumsum(1), size, "last")
    decays = decays_of(gates, segments, q)  # (B, c, H, C, K)

    earlier = F.pad(decays.from_start[..., :-1, :], (0, 0, 1, 0), value=1.0)  # to before step i
    if segments is not None:
        earlier = earlier * _kept(segments)
    readers = F.pad(a[..., 1:, :], (0, 0, 0, 1))  # a_i as a query of step i - 1
    rows, columns = torch.stack([q, readers], 1)[:, :, None], torch.stack([k, b], 1)[:, None]
    scores = scores_by_halves(rows, columns, gates[:, None, None])  # (B, 2, 2, c, H, C, C)
    (from_k, from_b), (reads_k, reads_b) = (two.unbind(1) for two in scores.unbind(1))
    same = decays_of(None, segments, q).within  # whether step j counts for step i: the scores have their decays
    from_k, from_b = same * from_k, same * from_b
    reads_k, reads_b = (same.tril(-1) * F.pad(reads[..., :-1, :], (0, 0, 1, 0)) for reads in (reads_k, reads_b))

    sides = torch.cat([reads_k @ v, earlier * a], dim=-1)
    solved = torch.linalg.solve_triangular(-reads_b, sides, upper=False, unitriangular=True)
    from_v, from_a = solved.split([v.shape[-1], a.shape[-1]], dim=-1)
    added = (k * decays.to_end).mT @ v
    state, before, read = _carry(state, from_v, from_a, b * decays.to_end, added, decays.across)
    output = from_k @ v + from_b @ read + (q * decays.from_start) @ before
    return out_of_chunks(output, length).to(dtype), state.to(dtype)


def _kept(segments: Tensor) -> Tensor:
    """Whether the state before each step (B, c, 1, C, 1), and before the chunk, belongs to the step's own sequence."""
    last = F.pad(segments[:, :-1, :, -1:], (0, 0, 0, 0, 0, 0, 1, 0))  # the segment that goes on into the chunk
    return segments == last


def _carry(
    state: Tensor, from_v: Tensor, from_a: Tensor, b_to_end: Tensor, added: Tensor, across: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence over chunks: final state, the state before each chunk (B, c, H, K, V), what the steps read."""
    before, read = [], []
    for v_here, a_here, b_here, added_here, across_here in zip(
        *(t.unbind(1) for t in (from_v, from_a, b_to_end, added, across)), strict=True
    ):
        before.append(state)
        read.append(v_here + a_here @ state)
        state = across_here * state + b_here.mT @ read[-1] + added_here
    return state, torch.stack(before, dim=1), torch.stack(read, dim=1)
