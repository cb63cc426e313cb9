"""One time step on the CPU in C (``step.c``), for decoding."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("step.c")


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """x (B, 1, D), weight (D, W), bias (D,), state (B, W - 1, D) -> output (B, 1, D), state, in the dtype of x."""
    wide = [t if t is None else t.float().contiguous() for t in (x, weight, bias, state)]
    y, following = torch.empty_like(wide[0]), torch.empty_like(wide[3])  # type: ignore[arg-type]
    native.call(SOURCE, "conv_step", len(x), *weight.shape, int(silu), *wide, y, following)
    return y.to(x.dtype), following.to(x.dtype)


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)
