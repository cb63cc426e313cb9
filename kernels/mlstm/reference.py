"""The recurrence of the mLSTM, one step a time step."""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST = -80.0  # of a stabilizer: exp(80) is still a float32, and next to 1 as good as infinite


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_input: Tensor,
    log_decay: Tensor,
    memory: Tensor,
    normalizer: Tensor,
    stabilizer: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One time step: q, k (B, H, K); v (B, H, V); gates (B, H); the state as in ``mlstm`` -> h (B, H, V), state."""
    before, stabilizer = stabilizer, torch.maximum(log_decay + stabilizer, log_input).clamp(min=LOWEST)
    f, i = (log_decay + before - stabilizer).exp()[..., None], (log_input - stabilizer).exp()[..., None]
    memory = f[..., None] * memory + (i * k)[..., :, None] * v[..., None, :]
    normalizer = f * normalizer + i * k
    read, total = scale * (q[..., None, :] @ memory)[..., 0, :], scale * (q * normalizer).sum(-1)
    return read / (torch.maximum(total.abs(), (-stabilizer).exp()) + eps)[..., None], memory, normalizer, stabilizer


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_input: Tensor,
    log_decay: Tensor,
    memory: Tensor,
    normalizer: Tensor,
    stabilizer: Tensor,
    starts: Tensor | None,
    scale: float,
    eps: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All time steps, differentiable by autograd; shapes as in ``mlstm``, ``starts`` (B, T) boolean."""
    outputs, state = [], (memory, normalizer, stabilizer)
    for t, now in enumerate(zip(*(x.unbind(1) for x in (q, k, v, log_input, log_decay)), strict=True)):
        if starts is not None:
            state = tuple(part * ~starts[:, t].view(-1, *[1] * (part.dim() - 1)) for part in state)
        h, *state = step(*now, *state, scale, eps)  # pyright: ignore[reportCallIssue]
        outputs.append(h)
    return torch.stack(outputs, dim=1), *state  # pyright: ignore[reportReturnType]
