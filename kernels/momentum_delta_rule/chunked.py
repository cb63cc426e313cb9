r"""The delta rule with momentum in chunks: one triangular system each, as of the delta rule itself.

With M and S before a chunk and the shares A of ``shares.py``, the errors

.. math::
    w_i = r_i (v_i - M_{i-1}^\top k_i), \quad
    M_{i-1} = \gamma_{i-1} M + f_{i-1} S + \sum_{j < i} A_{i-1, j} k_j w_j^\top

of a chunk solve a unit lower triangular system, whose right-hand side is linear in M and S. It is in float64, where the
device has it, as that of the delta rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.common.chunks import in_chunks, out_of_chunks
from zoo.kernels.momentum_delta_rule.shares import shares_of

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
    shares = shares_of(log_decay.to(wide), log_momentum.to(wide), starts, size)
    q, k, v, rate = (in_chunks(t, size) for t in (q, k, v, rate))  # (B, c, H, C, K), V or 1

    (error_m, error_s), (read_m, read_s), (written_m, written_s) = (
        share.split(1, dim=-1) for share in (shares.error, shares.read, shares.written)
    )
    system = rate * (shares.before * (k @ k.mT))  # strictly lower; the unit diagonal is implied
    sides = rate * torch.cat([v, error_m * k, error_s * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    parts = (
        *solved.split([v.shape[-1], k.shape[-1], k.shape[-1]], dim=-1),
        *(read_m * q, read_s * q, shares.taken * (q @ k.mT), written_m * k, written_s * k),
        *shares.across[..., None, None].unbind(-3),
    )
    outputs = []
    for u_v, u_m, u_s, q_m, q_s, q_w, k_m, k_s, all_m, all_f, all_s in zip(*(t.unbind(1) for t in parts), strict=True):
        w = u_v - u_m @ state - u_s @ momentum
        outputs.append(q_m @ state + q_s @ momentum + q_w @ w)
        state = all_m * state + all_f * momentum + k_m.mT @ w
        momentum = all_s * momentum + k_s.mT @ w
    return out_of_chunks(torch.stack(outputs, dim=1), length).to(dtype), state.to(dtype), momentum.to(dtype)
