"""The mLSTM as linear attention: the normaliser is the memory of a value that is always 1, and once the stabilizers are
known, forget and input gates are decays and factors of at most 1 (xLSTM 7B, section 3).

Nothing but eps depends on the stabilizers, so they are taken as constants, and where eps is added their gradient is
written down. Sent through every decay, it would be a sum that vanishes but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.linear_attention import chunked, linear_attention
from zoo.kernels.mlstm.reference import LOWEST


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
    attend: Callable[..., tuple[Tensor, Tensor]] = chunked.forward,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Same arguments and results as the reference; ``attend`` has those of linear attention."""
    log_input, log_decay = log_input.to(memory.dtype), log_decay.to(memory.dtype)
    m = stabilizers(log_input, log_decay, stabilizer, starts)  # (B, T, H)
    held, first = m.detach(), stabilizer.detach()
    before, g = torch.cat([first[:, None], held[:, :-1]], dim=1), log_decay.detach()
    kept = g + before > log_input.detach().clamp(min=LOWEST)  # there the memory as it is held does not shrink at all
    decay = log_decay + torch.where(kept, -g, before - held)
    if starts is not None:
        decay = decay.masked_fill(starts[..., None], 0.0)
    k = (log_input - held).exp()[..., None] * k
    state = (stabilizer - first).exp()[..., None, None] * torch.cat([memory, normalizer[..., None]], dim=-1)
    read, state = attend(q, k, F.pad(v, [0, 1], value=1.0), decay, state, starts, scale, chunk_size)
    read, total = read[..., :-1], read[..., -1]
    bound = torch.maximum(total.abs(), (-held).exp()) + eps * (m - held).exp()
    state = (held[:, -1] - m[:, -1]).exp()[..., None, None] * state
    return read / bound[..., None], state[..., :-1], state[..., -1], m[:, -1]


def forward_triton(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with the Triton kernels of linear attention."""
    return forward(*arguments, attend=_attend_triton)


def _attend_triton(q, k, v, decay, state, starts, scale, chunk_size) -> tuple[Tensor, Tensor]:
    sequences = None if starts is None else starts.cumsum(1)
    options = {"initial_state": state, "seq_idx": sequences, "scale": scale, "chunk_size": chunk_size}
    output, state = linear_attention(q, k, v.to(k.dtype), log_decay=decay, **options, impl="triton")
    return output, state


def stabilizers(log_input: Tensor, log_decay: Tensor, stabilizer: Tensor, starts: Tensor | None) -> Tensor:
    """m_t = max(log_decay_t + m_{t-1}, log_input_t, LOWEST) of all t, (B, T, H), from m_0 (B, H), and from 0 at
    ``starts``: after pass p each m_t has seen 2^p steps."""
    if starts is not None:
        log_input = torch.where(starts[..., None], torch.maximum(log_decay, log_input), log_input)
        log_decay = log_decay.masked_fill(starts[..., None], -torch.inf)
    m, spans, distance = log_input.clamp(min=LOWEST), log_decay, 1
    m = torch.cat([torch.maximum(log_decay[:, :1] + stabilizer[:, None], m[:, :1]), m[:, 1:]], dim=1)
    while distance < m.shape[1]:
        reached = torch.maximum(spans[:, distance:] + m[:, :-distance], m[:, distance:])
        spans = torch.cat([spans[:, :distance], spans[:, distance:] + spans[:, :-distance]], dim=1)
        m, distance = torch.cat([m[:, :distance], reached], dim=1), 2 * distance
    return m
