"""The delta rule on the CPU in C (``delta_rule.c``): matrix products over chunks, threaded over heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.dispatch import as_dtype

SOURCE = Path(__file__).with_name("delta_rule.c")
LARGEST_CHUNK = 32  # longer chunks only add work: the products within one are quadratic in its length
SMALLEST_WIDTH = 16  # key channels, of fewer all is in float64: the keys of a chunk are not to outnumber them


def forward(q, k, v, beta, log_decay, state, starts, scale, chunk_size) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, contiguous and of one dtype."""
    q, k, v, beta, log_decay, state = in_width(q.shape[-1], scale * q, k, v, beta, log_decay, state)
    output, final = torch.empty_like(v), torch.empty_like(state)
    native.call(
        SOURCE, "delta_rule_forward", *_sizes(q, v, log_decay, chunk_size),
        q, k, v, beta, log_decay, state, starts, output, final,
    )  # fmt: skip
    return output, final


def backward(dy, dstate, q, k, v, beta, log_decay, state, starts, scale, chunk_size) -> list[Tensor]:
    """Gradients of q, k, v, beta, log_decay (where there is one) and the initial state."""
    given = in_width(q.shape[-1], scale * q, k, v, beta, log_decay, state, dy, dstate)
    q, k, v, beta, log_decay, state, dy, dstate = given
    found = [None if t is None else torch.empty_like(t) for t in (q, k, v, beta, log_decay, state)]
    native.call(
        SOURCE, "delta_rule_backward", *_sizes(q, v, log_decay, chunk_size),
        dy, dstate, q, k, v, beta, log_decay, state, starts, *found,
    )  # fmt: skip
    found[0] *= scale
    return [t for t in found if t is not None]


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def in_width(key_dim: int, *tensors: Tensor | None) -> Any:
    """In float64 where there are few key channels; Triton 3.6 itself makes no such factors of bfloat16."""
    return as_dtype(torch.float64, *tensors) if key_dim < SMALLEST_WIDTH else tensors


def chunk_length(q: Tensor, chunk_size: int) -> int:
    """Steps of a chunk, no more than key channels in float32."""
    longest = LARGEST_CHUNK if q.dtype == torch.float64 else min(LARGEST_CHUNK, q.shape[-1])
    return min(chunk_size, longest, q.shape[1])


def _sizes(q: Tensor, v: Tensor, log_decay: Tensor | None, chunk_size: int) -> tuple[int, ...]:
    batch, length, heads, key_dim = q.shape
    gates = key_dim if log_decay is not None and log_decay.dim() == 4 else 1
    return batch, length, heads, key_dim, v.shape[-1], gates, chunk_length(q, chunk_size), torch.get_num_threads()
