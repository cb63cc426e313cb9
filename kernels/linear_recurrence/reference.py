"""The diagonal recurrence, one step a time step."""

from __future__ import annotations

import torch
from torch import Tensor


def step(x: Tensor, log_decay: Tensor, state: Tensor) -> Tensor:
    """One time step, all (B, D): the next state, which is the output."""
    return log_decay.exp() * state + x


def forward(x: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """All time steps, differentiable by autograd; shapes as in ``linear_recurrence``, ``starts`` (B, T) boolean."""
    states = []
    for t, (x_t, g_t) in enumerate(zip(x.unbind(1), log_decay.unbind(1), strict=True)):
        if starts is not None:
            state = state * ~starts[:, t, None]
        state = step(x_t, g_t, state)
        states.append(state)
    return torch.stack(states, dim=1), state
