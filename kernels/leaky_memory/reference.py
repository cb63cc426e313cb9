"""The leaky memory, one step a time step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE, SLOPE = 1.7159, 2 / 3  # of the tanh


def step(
    x: Tensor, W_in: Tensor, W_out: Tensor, bias: Tensor, decay: Tensor, gain: Tensor, state: Tensor, smooth: bool
) -> Tensor:
    """One time step: what the input adds to the hidden units, x (B, H), and the memory (B, D) -> the next memory."""
    kept = decay * state
    hidden = (F.silu if smooth else F.relu)(x + kept @ W_in)
    return kept + gain * (SCALE * torch.tanh(SLOPE * (hidden @ W_out + bias)))


def forward(
    x: Tensor,
    W_in: Tensor,
    W_out: Tensor,
    bias: Tensor,
    decay: Tensor,
    gain: Tensor,
    state: Tensor,
    starts: Tensor | None,
    smooth: bool,
) -> tuple[Tensor, Tensor]:
    """All time steps, differentiable by autograd; shapes as in ``leaky_memory``, ``starts`` (B, T) boolean."""
    states = []
    for t, x_t in enumerate(x.unbind(1)):
        if starts is not None:
            state = state * ~starts[:, t, None]
        state = step(x_t, W_in, W_out, bias, decay, gain, state, smooth)
        states.append(state)
    return torch.stack(states, dim=1), state
