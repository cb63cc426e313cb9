"""The delta rule with momentum on the CPU in C: matrix products over chunks, threaded over heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.delta_rule.native import chunk_length, in_width

SOURCE = Path(__file__).with_name("momentum_delta_rule.c")


def forward(q, k, v, rate, log_decay, log_momentum, state, momentum, starts, scale, chunk_size) -> tuple[Tensor, ...]:
    """Same arguments and results as the reference, contiguous and of one dtype."""
    given: Any = in_width(q.shape[-1], scale * q, k, v, rate, log_decay, log_momentum, state, momentum)
    found = tuple(torch.empty_like(t) for t in (given[2], *given[-2:]))
    native.call(SOURCE, "momentum_delta_rule_forward", *_sizes(given[0], v, chunk_size), *given, starts, *found)
    return found


def backward(
    dy, dstate, dmomentum, q, k, v, rate, log_decay, log_momentum, state, momentum, starts, scale, chunk_size
) -> list[Tensor]:
    """Gradients of q, k, v, rate, the gates and both initial states."""
    given: Any = in_width(q.shape[-1], scale * q, k, v, rate, log_decay, log_momentum, state, momentum)
    arriving = in_width(q.shape[-1], dy, dstate, dmomentum)
    found = [torch.empty_like(t) for t in given]
    native.call(
        SOURCE, "momentum_delta_rule_backward", *_sizes(given[0], v, chunk_size), *arriving, *given, starts, *found
    )
    found[0] *= scale
    return found


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(q: Tensor, v: Tensor, chunk_size: int) -> tuple[int, ...]:
    return (*q.shape, v.shape[-1], chunk_length(q, chunk_size), torch.get_num_threads())
