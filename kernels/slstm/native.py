"""The sLSTM's recurrence on the CPU in C (``slstm.c``), threaded over sequences and heads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("slstm.c")


def forward(x, R, state, starts) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, contiguous and of one dtype."""
    output, final = x.new_empty(*x.shape[:2], *x.shape[3:]), torch.empty_like(state)
    native.call(SOURCE, "slstm_forward", *_sizes(x), x, R, state, starts, output, final)
    return output, final


def backward(dy, dstate, x, R, state, starts) -> tuple[Tensor, ...]:
    """Gradients of x, R and the initial state; the outputs before each step are computed again."""
    before, dx, dinitial = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(state)
    native.call(
        SOURCE, "slstm_backward", *_sizes(x), dy, dstate, x, R, state, starts, before, dx, dinitial
    )  # fmt: skip
    return dx, torch.einsum("bthd,btghe->hdge", before, dx), dinitial


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(x: Tensor) -> tuple[int, ...]:
    batch, length, _, heads, dim = x.shape
    return batch, length, heads, dim, torch.get_num_threads()
