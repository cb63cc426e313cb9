"""Causal convolution on the CPU in C (``causal_conv1d.c``): vectorised over channels, threaded over slices of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("causal_conv1d.c")


def forward(x, weight, bias, state, starts, silu) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, of one dtype; x in rows, the others contiguous."""
    output, final = x.new_empty(x.shape), torch.empty_like(state)
    native.call(
        SOURCE, "causal_conv1d_forward", *_sizes(x, weight), int(silu),
        x, weight, bias, state.contiguous(), starts, output, final,
    )  # fmt: skip
    return output, final


def backward(dy, dstate, x, weight, bias, state, starts, silu) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias (also when there is none) and the initial state."""
    dx, dinitial = x.new_empty(x.shape), state.new_empty(state.shape)
    dweight, dbias = weight.new_empty(x.shape[0], *weight.shape), weight.new_empty(x.shape[0], x.shape[2])
    native.call(
        SOURCE, "causal_conv1d_backward", *_sizes(x, weight), int(silu),
        dy.contiguous(), dstate.contiguous(), x, weight, bias, state.contiguous(), starts, dx, dweight, dbias, dinitial,
    )  # fmt: skip
    return dx, dweight.sum(0), dbias.sum(0), dinitial


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    return (*x.shape, weight.shape[1], x.stride(1), torch.get_num_threads())
