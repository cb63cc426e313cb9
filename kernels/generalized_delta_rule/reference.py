"""The recurrence of the generalised delta rule, one step a time step."""

from __future__ import annotations

import torch
from torch import Tensor


def step(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One time step: q, k, a, b, log_decay (B, H, K); v (B, H, V); state (B, H, K, V)."""
    found = a[..., None, :] @ state  # (B, H, 1, V)
    state = log_decay.exp()[..., None] * state + b[..., :, None] * found + k[..., :, None] * v[..., None, :]
    return scale * (q[..., None, :] @ state)[..., 0, :], state


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
    """All steps, differentiable by autograd; shapes as in ``generalized_delta_rule``, ``starts`` (B, T) boolean."""
    outputs = []
    for t, now in enumerate(zip(*(m.unbind(1) for m in (q, k, v, a, b, log_decay)), strict=True)):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        y, state = step(*now, state, scale)  # pyright: ignore[reportCallIssue]
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
