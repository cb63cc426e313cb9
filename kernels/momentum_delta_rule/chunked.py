r"""The delta rule with momentum in chunks: one triangular system each, as of the delta rule itself.

With M and S before a chunk, :math:`\Gamma_{ij}` the decay and :math:`E_{ij}` the momentum's from after step j to after
step i, :math:`\gamma_i` and :math:`\epsilon_i` those from before the chunk, the state after step i is

.. math::
    M_i = \gamma_i M + f_i S + \sum_{j \le i} A_{ij} k_j w_j^\top, \quad A = \Gamma E, \quad f = \Gamma \epsilon, \quad
    w_i = r_i (v_i - M_{i-1}^\top k_i)

so the errors w of a chunk solve a unit lower triangular system, whose right-hand side is linear in M and S. It is in
float64, where the device has it, as that of the delta rule.

Source: the closed form of Behrouz et al., "Titans", arXiv 2501.00663, section 3.2, with each gradient at the newest
weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.common.chunks import LOWEST, decays_of, in_chunks, out_of_chunks

LARGEST_CHUNK = 32  # longer ones only add work in the triangular system


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    log_decay: Tensor,
    log_momentum: Tensor,
    state: Tensor,
    momentum: Tensor,
    starts: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments and results as the reference; c chunks of C steps."""
    length, size, dtype = q.shape[1], min(chunk_size, LARGEST_CHUNK, q.shape[1]), state.dtype
    wide = dtype if q.device.type == "mps" else torch.float64
    q, k, v, rate, state, momentum = (t.to(wide) for t in (scale * q, k, v, rate[..., None], state, momentum))
    gates = (g.to(wide).clamp(min=LOWEST)[..., None] for g in (log_decay, log_momentum))
    q, k, v, rate, *gates = (in_chunks(t, size) for t in (q, k, v, rate, *gates))  # (B, c, H, C, K), V or 1
    segments = None if starts is None else in_chunks(starts[:, :, None, None].cumsum(1), size, "last")
    decay, carry = (decays_of(gate, segments, q) for gate in gates)

    taken = decay.within @ carry.within  # A
    moved = decay.within @ carry.from_start  # f
    before, kept, passed = _a_step_earlier(taken, decay.from_start, moved, segments)
    system = rate * (before * (k @ k.mT))  # strictly lower; the unit diagonal is implied
    sides = rate * torch.cat([v, kept * k, passed * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    from_v, from_state, from_momentum = solved.split([v.shape[-1], k.shape[-1], k.shape[-1]], dim=-1)
    reads = decay.from_start * q, moved * q, taken * (q @ k.mT)
    end = (length - 1) % size  # of the last chunk, behind which the momentum would go on
    ends = [
        torch.cat([t[:, :-1, :, -1:], t[:, -1:, :, end : end + 1]], dim=1)
        for t in (taken, carry.within, decay.from_start, moved, carry.from_start)
    ]
    last_taken, last_carried = (k * t.mT for t in ends[:2])

    outputs, parts = [], (from_v, from_state, from_momentum, *reads, last_taken, last_carried, *ends[2:])
    for u_v, u_m, u_s, q_m, q_s, q_w, k_m, k_s, all_m, all_f, all_s in zip(*(t.unbind(1) for t in parts), strict=True):
        w = u_v - u_m @ state - u_s @ momentum
        outputs.append(q_m @ state + q_s @ momentum + q_w @ w)
        state = all_m * state + all_f * momentum + k_m.mT @ w
        momentum = all_s * momentum + k_s.mT @ w
    return out_of_chunks(torch.stack(outputs, dim=1), length).to(dtype), state.to(dtype), momentum.to(dtype)


def _a_step_earlier(taken: Tensor, kept: Tensor, moved: Tensor, segments: Tensor | None) -> tuple[Tensor, ...]:
    """What a step's error reads: A, gamma and f of the step before, nothing of another sequence."""
    before = F.pad(taken[..., :-1, :], (0, 0, 1, 0))
    kept, moved = F.pad(kept[..., :-1, :], (0, 0, 1, 0), value=1.0), F.pad(moved[..., :-1, :], (0, 0, 1, 0))
    if segments is None:
        return before, kept, moved
    first = F.pad(segments[:, :-1, :, -1:], [0, 0, 0, 0, 0, 0, 1, 0])
    here = segments == first
    return before * (segments == segments.mT), kept * here, moved * here
