"""The recurrence of the delta rule with momentum, one step a time step."""

from __future__ import annotations

import torch
from torch import Tensor


def step(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, decay: Tensor, carry: Tensor, state: Tensor, momentum: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One time step: q, k (B, H, K); v (B, H, V); rate and the logs of decay and carry (B, H); state and momentum
    (B, H, K, V)."""
    error = v - (k[..., None, :] @ state)[..., 0, :]
    momentum = carry.exp()[..., None, None] * momentum + (rate[..., None] * k)[..., None] * error[..., None, :]
    state = decay.exp()[..., None, None] * state + momentum
    return scale * (q[..., None, :] @ state)[..., 0, :], state, momentum


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
    """All time steps, differentiable by autograd; shapes as in ``momentum_delta_rule``, ``starts`` (B, T) boolean."""
    outputs = []
    for t in range(q.shape[1]):
        if starts is not None:
            state, momentum = (m * ~starts[:, t, None, None, None] for m in (state, momentum))
        now = q[:, t], k[:, t], v[:, t], rate[:, t], log_decay[:, t], log_momentum[:, t]
        y, state, momentum = step(*now, state, momentum, scale)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state, momentum
