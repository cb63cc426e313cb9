"""Rotary embedding on the CPU in C (``rope.c``): one pass, threaded over the steps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("rope.c")


def forward(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Same arguments and results as the reference; x in rows."""
    y = x.new_empty(x.shape)
    sizes = *x.shape, cos.shape[-1], x.stride(1), int(cos.dim() == 3), int(interleaved), torch.get_num_threads()
    native.call(SOURCE, "rope", *sizes, x, cos.contiguous(), sin.contiguous(), y)
    return y


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)
