"""The diagonal recurrence on the CPU in C (``linear_recurrence.c``), vectorised over channels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("linear_recurrence.c")


def forward(x, log_decay, state, starts) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, of one dtype; x and log_decay in rows, the others contiguous."""
    states, final = x.new_empty(x.shape), torch.empty_like(state)
    native.call(
        SOURCE, "linear_recurrence_forward", *_sizes(x, log_decay), x, log_decay, state, starts, states, final,
    )  # fmt: skip
    return states, final


def backward(dy, dstate, x, log_decay, state, starts) -> tuple[Tensor, ...]:
    """Gradients of x, log_decay and the initial state."""
    dx, ddecay, dinitial = x.new_empty(x.shape), x.new_empty(x.shape), torch.empty_like(state)
    native.call(
        SOURCE, "linear_recurrence_backward", *_sizes(x, log_decay),
        dy.contiguous(), dstate, x, log_decay, state, starts, dx, ddecay, dinitial,
    )  # fmt: skip
    return dx, ddecay, dinitial


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(x: Tensor, log_decay: Tensor) -> tuple[int, ...]:
    return (*x.shape, x.stride(1), log_decay.stride(1), torch.get_num_threads())
