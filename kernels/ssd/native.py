"""State-space duality on the CPU in C (``ssd.c``): matrix products over chunks, threaded over blocks of heads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("ssd.c")
LARGEST_CHUNK = 64  # longer chunks only add work: the products within one are quadratic in its length
LARGEST_BLOCK = 8  # heads a task: their states stay in the second-level cache


def forward(x, dt, A, B, C, state, starts, chunk_size) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference, of one dtype; x, B and C in rows, the others contiguous."""
    output, final = x.new_empty(x.shape), state.new_empty(state.shape)
    native.call(
        SOURCE, "ssd_forward", *_sizes(x, B, C, chunk_size),
        x, dt.contiguous(), A, B, C, state.contiguous(), starts, output, final,
    )  # fmt: skip
    return output, final


def backward(dy, dstate, x, dt, A, B, C, state, starts, chunk_size) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C and the initial state."""
    sizes = _sizes(x, B, C, chunk_size)
    block = sizes[7]
    blocks = -(-x.shape[2] // B.shape[2] // block)
    dx, ddt, dinitial = (t.new_empty(t.shape) for t in (x, dt, state))
    dA = A.new_empty(x.shape[0], *A.shape)
    dB, dC = (B.new_empty(blocks, *B.shape) for _ in range(2))
    native.call(
        SOURCE, "ssd_backward", *sizes, dy.contiguous(), dstate.contiguous(), x, dt.contiguous(), A, B, C,
        state.contiguous(), starts, dx, ddt, dA, dB, dC, dinitial,
    )  # fmt: skip
    return dx, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dinitial


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(x: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> tuple[int, ...]:
    """What the C functions take first; heads a task: two tasks a thread where there are heads enough."""
    (batch, length, heads, head_dim), (groups, state) = x.shape, B.shape[2:]
    threads = torch.get_num_threads()
    block = max(1, min(LARGEST_BLOCK, heads // groups, batch * heads // (2 * threads)))
    rows = (t.stride(1) for t in (x, B, C))
    return batch, length, heads, head_dim, groups, state, min(chunk_size, LARGEST_CHUNK, length), block, *rows, threads
