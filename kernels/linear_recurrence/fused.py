"""The diagonal recurrence in torch for any device: all decays at once, then one fused update a step."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference."""
    states = _run(x, _decay(log_decay, starts), state)
    return states, states[:, -1].clone()


def backward(dy, dstate, x, log_decay, state, starts) -> tuple[Tensor, ...]:
    """Gradients of x, log_decay and the initial state: that of x is the recurrence backwards in time, over dy."""
    decay = _decay(log_decay, starts)
    before = torch.cat([state[:, None], _run(x, decay, state)[:, :-1]], dim=1)
    following = torch.cat([decay[:, 1:], torch.ones_like(decay[:, :1])], dim=1)  # of step t + 1
    dx = _run(dy.flip(1), following.flip(1), dstate).flip(1)
    through = dx * decay
    return dx, through * before, through[:, 0].clone()


def _decay(log_decay: Tensor, starts: Tensor | None) -> Tensor:
    decay = log_decay.exp()
    return decay if starts is None else decay.mul_(~starts[..., None])


def _run(x: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    states = torch.empty_like(x)
    for t in range(x.shape[1]):
        state = torch.addcmul(x[:, t], decay[:, t], state, out=states[:, t])
    return states
