"""Selective scan on the CPU in C (``selective_scan.c``): vectorised over channels, threaded over blocks of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("selective_scan.c")
LANES = 64  # channels a block, as in the C source


def forward(x, dt, A, B, C, D, z, dt_bias, state, starts, softplus) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference, contiguous and of one dtype."""
    output, final = torch.empty_like(x), torch.empty_like(state)
    native.call(
        SOURCE, "selective_scan_forward", *_sizes(x, B, softplus),
        x, dt, A, B, C, D, z, dt_bias, state, starts, output, final,
    )  # fmt: skip
    return output, final


def backward(dy, dstate, x, dt, A, B, C, D, z, dt_bias, state, starts, softplus) -> list[Tensor]:
    """Gradients of the floating tensors that are there, in their order."""
    batch, blocks = x.shape[0], -(-x.shape[2] // B.shape[2] // LANES)
    dx, ddt, dinitial = torch.empty_like(x), torch.empty_like(x), torch.empty_like(state)
    dz = None if z is None else torch.empty_like(z)
    dA, dB, dC = torch.empty_like(state), B.new_empty(blocks, *B.shape), C.new_empty(blocks, *C.shape)
    dD, dbias = (None if t is None else t.new_empty(batch, *t.shape) for t in (D, dt_bias))
    native.call(
        SOURCE, "selective_scan_backward", *_sizes(x, B, softplus),
        dy, dstate, x, dt, A, B, C, D, z, dt_bias, state, starts, dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial,
    )  # fmt: skip
    dA, dB, dC, dD, dbias = (None if t is None else t.sum(0) for t in (dA, dB, dC, dD, dbias))
    return [t for t in (dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial) if t is not None]


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(x: Tensor, B: Tensor, softplus: bool) -> tuple[int, ...]:
    return (*x.shape, B.shape[3], B.shape[2], torch.get_num_threads(), int(softplus))
