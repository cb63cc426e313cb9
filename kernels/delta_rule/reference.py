"""The recurrence of the delta rule, one step a time step."""

from __future__ import annotations

import torch
from torch import Tensor


def step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One time step: q, k (B, H, K); v (B, H, V); beta, log_decay (B, H); state (B, H, K, V)."""
    if log_decay is not None:
        state = log_decay.exp()[..., None, None] * state
    correction = beta[..., None] * (v - (k[..., None, :] @ state)[..., 0, :])
    state = state + k[..., :, None] * correction[..., None, :]
    return scale * (q[..., None, :] @ state)[..., 0, :], state


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
    """All time steps, differentiable by autograd; shapes as in ``delta_rule``, ``starts`` (B, T) boolean."""
    outputs = []
    for t in range(q.shape[1]):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        decay = None if log_decay is None else log_decay[:, t]
        y, state = step(q[:, t], k[:, t], v[:, t], beta[:, t], decay, state, scale)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
