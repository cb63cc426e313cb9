"""The recurrence of linear attention, one step a time step."""

from __future__ import annotations

import torch
from torch import Tensor


def step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One time step: q, k (B, H, K); v (B, H, V); log_decay (B, H) or (B, H, K); state (B, H, K, V)."""
    if log_decay is not None:
        state = (log_decay if log_decay.dim() == 3 else log_decay[..., None]).exp()[..., None] * state
    state = state + k[..., :, None] * v[..., None, :]
    return scale * (q[..., None, :] @ state)[..., 0, :], state


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
    """All time steps, differentiable by autograd; shapes as in ``linear_attention``, ``starts`` (B, T) boolean."""
    outputs = []
    decays = [None] * q.shape[1] if log_decay is None else log_decay.unbind(1)
    for t, (q_t, k_t, v_t, decay_t) in enumerate(zip(*(m.unbind(1) for m in (q, k, v)), decays, strict=True)):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        y, state = step(q_t, k_t, v_t, decay_t, state, scale)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
