"""The recurrence of the sLSTM, one step a time step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def step(x: Tensor, R: Tensor, state: Tensor) -> Tensor:
    """One time step: gates' logits x (B, 4, H, D); R (H, D, 4, D); state (B, 4, H, D) -> the next state, h first."""
    h, c, n, m = state.unbind(1)
    i, f, z, o = (x + torch.einsum("bhd,hdge->bghe", h, R)).unbind(1)
    kept = (F.logsigmoid(f) + m).masked_fill(n == 0, -torch.inf)
    m = torch.maximum(kept, i)
    f, i = (kept - m).exp(), (i - m).exp()
    c = f * c + i * z.tanh()
    n = f * n + i
    return torch.stack([o.sigmoid() * c / n, c, n, m], dim=1)


def forward(x: Tensor, R: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """All time steps, differentiable by autograd; shapes as in ``slstm``, ``starts`` (B, T) boolean."""
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        state = step(x_t, R, state)
        outputs.append(state[:, 0])
    return torch.stack(outputs, dim=1), state
