"""Selective scan in torch for any device: chunks of steps, the state kept at the chunk boundaries only."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients
from zoo.kernels.selective_scan import reference

CHUNK_SIZE = 32
OVER_TIME = (True, True, False, True, True, False, True, False)  # which of x, dt, A, B, C, D, z and dt_bias are


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
    """Same arguments as the reference; the decays of a chunk are computed together, then one fused update a step."""
    outputs, _, state = _run(x, reference.step_size(dt, dt_bias, softplus), A, B, C, state, starts)
    return reference.skipped_and_gated(outputs, x, D, z), state


def backward(dy: Tensor, dstate: Tensor, *inputs) -> list[Tensor]:
    """Gradients of the tensors that are there, the initial state last: chunks in reverse, each recomputed from its
    boundary state."""
    *tensors, state, starts, softplus = inputs
    x, dt, A, B, C, _, _, dt_bias = tensors
    _, boundaries, _ = _run(x, reference.step_size(dt, dt_bias, softplus), A, B, C, state, starts)
    step_by_step, parts = partial(reference.forward, softplus=softplus), []
    for chunk, boundary in zip(reversed(_chunks(x.shape[1])), reversed(boundaries), strict=True):
        pieces = [_part(t, chunk) if over_time else t for t, over_time in zip(tensors, OVER_TIME, strict=True)]
        arriving = (dy[:, chunk], dstate)
        *part, dstate = recomputed_gradients(step_by_step, (*pieces, boundary, _part(starts, chunk)), arriving)
        parts.append(part)
    given = [over_time for t, over_time in zip(tensors, OVER_TIME, strict=True) if t is not None]
    columns = zip(given, *reversed(parts), strict=True)
    return [*(torch.cat(c, 1) if over_time else torch.stack(c).sum(0) for over_time, *c in columns), dstate]


def _run(x, dt, A, B, C, state, starts) -> tuple[Tensor, list[Tensor], Tensor]:
    """Outputs, the state before each chunk, the final state."""
    channels = x.shape[2] // B.shape[2]
    outputs, boundaries = torch.empty_like(x), []
    state = state.clone()
    for chunk in _chunks(x.shape[1]):
        boundaries.append(state.clone())
        step = dt[:, chunk, :, None]  # (B, Q, D, 1)
        decay = torch.exp(step * A)  # (B, Q, D, N)
        if starts is not None:
            decay *= ~starts[:, chunk, None, None]
        states = step * x[:, chunk, :, None] * B[:, chunk].repeat_interleave(channels, dim=2)
        for t in range(states.shape[1]):
            state = torch.addcmul(states[:, t], decay[:, t], state, out=states[:, t])
        torch.sum(states * C[:, chunk].repeat_interleave(channels, dim=2), dim=-1, out=outputs[:, chunk])
    return outputs, boundaries, state.clone()


def _chunks(length: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_SIZE, length)) for start in range(0, length, CHUNK_SIZE)]


def _part(tensor: Tensor | None, chunk: slice) -> Tensor | None:
    return None if tensor is None else tensor[:, chunk]
