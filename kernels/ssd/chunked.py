"""State-space duality as matrix products (Mamba-2, section 6): quadratic within a chunk, recurrent between chunks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.common.chunks import LOWEST, decay_between


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, starts: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference; c chunks of q steps, h = H / G heads a group."""
    batch, length, heads, head_dim = x.shape
    groups, q = B.shape[2], min(chunk_size, length)
    shape = (batch, -(-length // q), q, groups)
    x, dt, B, C = (_pad(t, shape[1] * q) for t in (x, dt, B, C))
    B, C = (m.view(*shape, m.shape[3]).transpose(2, 3) for m in (B, C))  # (B, c, G, q, N)
    log_decay = (dt * A).clamp(min=LOWEST).view(*shape, heads // groups).permute(0, 1, 3, 4, 2)  # (B, c, G, h, q)
    inputs = (x * dt[..., None]).view(*shape, heads // groups, head_dim).permute(0, 1, 3, 4, 2, 5)  # (B, c, G, h, q, P)

    within, from_start = decay_between(log_decay), log_decay.cumsum(-1).exp()  # (B, c, G, h, q, q), (B, c, G, h, q)
    across = from_start[..., -1]
    if starts is not None:
        index = _pad(starts, shape[1] * q).view(shape[:3]).cumsum(-1)[:, :, None, None]  # (B, c, 1, 1, q)
        within = within * (index[..., :, None] == index[..., None, :])
        from_start = from_start * (index == 0)
        across = across * (index[..., -1] == 0)
    to_end = within[..., -1, :]

    output = (within * (C @ B.mT)[:, :, :, None]) @ inputs
    added = (inputs * to_end[..., None]).mT @ B[:, :, :, None]  # (B, c, G, h, P, N)
    state, before = _carry(state.view(batch, groups, heads // groups, *state.shape[2:]), added, across)
    output = output + from_start[..., None] * (C[:, :, :, None] @ before.mT)
    output = output.permute(0, 1, 4, 2, 3, 5).reshape(batch, shape[1] * q, heads, head_dim)
    return output[:, :length], state.reshape(batch, heads, head_dim, state.shape[-1])


def _carry(state: Tensor, added: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence over chunks: final state, and the state before each chunk (B, c, G, h, P, N)."""
    before = []
    for added_here, across_here in zip(added.unbind(1), across.unbind(1), strict=True):
        before.append(state)
        state = torch.addcmul(added_here, across_here[..., None, None], state)
    return state, torch.stack(before, dim=1)


def _pad(tensor: Tensor, length: int) -> Tensor:
    """Zeros behind the time axis (dim 1) up to ``length``: dt = 0 leaves the state as it is."""
    return F.pad(tensor, [0, 0] * (tensor.dim() - 2) + [0, length - tensor.shape[1]])
