"""The recurrence of the selective scan, one step a time step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One time step: x, dt (B, D); A (D, N); B, C (B, G, N); state (B, D, N) -> output (B, D), next state."""
    channels = x.shape[1] // B.shape[1]
    if B.shape[1] > 1:
        B, C = (m.repeat_interleave(channels, dim=1) for m in (B, C))  # (B, D, N)
    state = torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B
    return (state * C).sum(-1), state


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """All time steps, differentiable by autograd; shapes as in ``selective_scan``, ``starts`` (B, T) boolean."""
    outputs, dt = [], step_size(dt, dt_bias, softplus)
    for t, (x_t, dt_t, B_t, C_t) in enumerate(zip(*(m.unbind(1) for m in (x, dt, B, C)), strict=True)):
        if starts is not None:
            state = state * ~starts[:, t, None, None]
        y, state = step(x_t, dt_t, A, B_t, C_t, state)
        outputs.append(y)
    return skipped_and_gated(torch.stack(outputs, dim=1), x, D, z), state


def step_size(dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    dt = dt if bias is None else dt + bias
    return F.softplus(dt) if softplus else dt


def skipped_and_gated(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    y = y if D is None else torch.addcmul(y, x, D)
    return y if z is None else y * F.silu(z)
