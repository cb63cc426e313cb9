"""The leaky memory on the CPU in C (``leaky_memory.c``), threaded over blocks of sequences, vectorised over units."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.leaky_memory.gradient import gradients

SOURCE = Path(__file__).with_name("leaky_memory.c")


def forward(x, W_in, W_out, bias, decay, gain, state, starts, smooth) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, contiguous and of one dtype."""
    states, final = x.new_empty(*x.shape[:2], state.shape[1]), torch.empty_like(state)
    native.call(
        SOURCE, "leaky_memory_forward", *_sizes(x, state), int(smooth), x, W_in, W_out, bias, decay, gain, state,
        starts, states, final,
    )  # fmt: skip
    return states, final


def backward(dy, dstate, x, W_in, W_out, bias, decay, gain, state, starts, smooth) -> tuple[Tensor, ...]:
    """Gradients of x, the weights, the bias, decay, gain and the initial state; memories are computed again."""
    states, _ = forward(x, W_in, W_out, bias, decay, gain, state, starts, smooth)
    return gradients(states, _chain, dy, dstate, x, W_in, W_out, bias, decay, gain, state, starts, smooth)


def _chain(dy, dstate, decay, hidden_slope, drive_slope, W_in, W_out, starts) -> tuple[Tensor, ...]:
    g, dkept, dx, dinitial = map(torch.empty_like, (dy, dy, hidden_slope, dstate))
    native.call(
        SOURCE, "leaky_memory_chain", *_sizes(hidden_slope, dstate), dy, dstate, decay, hidden_slope, drive_slope,
        W_in.T.contiguous(), W_out.T.contiguous(), starts, g, dx, dkept, dinitial,
    )  # fmt: skip
    return g, dx, dkept, dinitial


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(x: Tensor, state: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], state.shape[1], x.shape[2], torch.get_num_threads())
