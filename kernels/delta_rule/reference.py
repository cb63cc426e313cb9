"""The recurrence of the delta rule, one step a time step."""

from __future__ import annotations

import torch
from torch import Tensor


def step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One time step: q, k (B, H, K); v (B, H, V); beta (B, H); log_decay (B, H) or (B, H, K); state (B, H, K, V)."""
    if log_decay is not None:
        state = (log_decay if log_decay.dim() == 3 else log_decay[..., None]).exp()[..., None] * state
    correction = beta[..., None] * (v - (k[..., None, :] @ state)[..., 0, :])
    state = torch.addcmul(state, k[..., :, None], correction[..., None, :])
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
    decays = [None] * q.shape[1] if log_decay is None else log_decay.unbind(1)
    steps = zip(*(m.unbind(1) for m in (q, k, v, beta)), decays, strict=True)
    for t, (q_t, k_t, v_t, beta_t, decay_t) in enumerate(steps):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        y, state = step(q_t, k_t, v_t, beta_t, decay_t, state, scale)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
