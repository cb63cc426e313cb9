r"""The delta rule in chunks, by the WY form of a product of reflections (DeltaNet, section 3; Gated DeltaNet, 3.3).

With S the state before a chunk, :math:`\Gamma_{ij}` the decay from after step j to after step i and :math:`\gamma_i`
the one from before the chunk, the state after step i is

.. math::
    S_i = \gamma_i S + \sum_{j \le i} \Gamma_{ij} k_j u_j^\top, \quad
    u_i = \beta_i (v_i - \gamma_i S^\top k_i - \sum_{j < i} \Gamma_{ij} (k_i \cdot k_j) u_j)

or, where each key channel decays by itself (Kimi Linear), with :math:`\gamma_i` and :math:`\Gamma_{ij}` diagonal
matrices and :math:`k_i^\top \Gamma_{ij} k_j` in place of the product. So the corrections u of a chunk solve a unit
lower triangular system, whose right-hand side is linear in S: :math:`U = U_v - U_k S`. Both parts are solved for in all
chunks at once; only two products a chunk are sequential.

Where the keys of a chunk outnumber their channels, the corrections cancel most of S: a difference that float32 would
leave several times the recurrence's rounding in. So all of it is in float64, where the device has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.common.chunks import LOWEST, decays_of, in_chunks, out_of_chunks, scores_by_halves

LARGEST_CHUNK = 32  # longer ones only add work in the triangular system


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference; c chunks of C steps."""
    length, size, dtype = q.shape[1], min(chunk_size, LARGEST_CHUNK, q.shape[1]), state.dtype
    wide = dtype if q.device.type == "mps" else torch.float64
    q, k, v, beta, state = (t.to(wide) for t in (scale * q, k, v, beta[..., None], state))
    gates = log_decay if log_decay is None or log_decay.dim() == 4 else log_decay[..., None]
    vector = gates is not None and gates.shape[-1] > 1
    if vector:
        size = 1 << (size - 1).bit_length()  # halved down to single steps
    q, k, v, beta = (in_chunks(t, size) for t in (q, k, v, beta))  # (B, c, H, C, K), V or 1
    gates = None if gates is None else in_chunks(gates.to(wide).clamp(min=LOWEST), size)
    segments = None if starts is None else in_chunks(starts[:, :, None, None].cumsum(1), size, "last")
    decays = decays_of(gates, segments, q)

    if vector and gates is not None:
        from_q, from_k = scores_by_halves(torch.stack([q, k]), k[None], gates[None]).unbind(0)
    else:
        from_q, from_k = q @ k.mT, k @ k.mT
    system = (beta * decays.within * from_k).tril(-1)  # the unit diagonal is implied
    sides = torch.cat([beta * v, beta * decays.from_start * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    by_v, by_k = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    state, before, corrections = _carry(state, by_v, by_k, k * decays.to_end, decays.across)
    output = (decays.within * from_q) @ corrections + (q * decays.from_start) @ before
    return out_of_chunks(output, length).to(dtype), state.to(dtype)


def _carry(
    state: Tensor, by_v: Tensor, by_k: Tensor, k_to_end: Tensor, across: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence over chunks: final state, the state before each chunk (B, c, H, K, V), corrections u."""
    before, corrections = [], []
    across = across.expand(*by_v.shape[:3], *across.shape[-2:])
    chunks = zip(*(t.unbind(1) for t in (by_v, by_k, k_to_end, across)), strict=True)  # one gradient for all
    for v_here, k_here, k_to_end_here, across_here in chunks:
        before.append(state)
        corrections.append(v_here - k_here @ state)
        state = across_here * state + k_to_end_here.mT @ corrections[-1]
    return state, torch.stack(before, dim=1), torch.stack(corrections, dim=1)
