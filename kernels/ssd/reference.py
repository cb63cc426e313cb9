"""The recurrence of state-space duality (Mamba-2), one step a time step."""

from __future__ import annotations

import torch
from torch import Tensor


def step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One time step: x (B, H, P); dt (B, H); A (H,); B, C (B, G, N); state (B, H, P, N) -> output (B, H, P), state."""
    heads = x.shape[1] // B.shape[1]
    if B.shape[1] > 1:
        B, C = (m.repeat_interleave(heads, dim=1) for m in (B, C))
    B, C = B[:, :, None], C[:, :, None]  # (B, H, 1, N), or 1 for H
    state = torch.exp(dt * A)[..., None, None] * state + (dt[..., None] * x)[..., None] * B
    return (state * C).sum(-1), state


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, starts: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """All time steps, differentiable by autograd; shapes as in ``ssd``, ``starts`` (B, T) boolean."""
    outputs = []
    for t, (x_t, dt_t, B_t, C_t) in enumerate(zip(*(m.unbind(1) for m in (x, dt, B, C)), strict=True)):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        y, state = step(x_t, dt_t, A, B_t, C_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
