"""One time step on the CPU in C (``step.c``): one pass over the state, for decoding."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("step.c")


def forward(x, dt, A, B, C, D, dt_bias, dt_softplus: bool, dt_limit, state) -> tuple[Tensor, Tensor]:
    """Of ``ssd``, for T = 1: x (B, 1, H, P), ... -> output (B, 1, H, P) in the dtype of x, state (B, H, P, N)."""
    batch, _, heads, head_dim = x.shape
    groups, size = B.shape[2:]
    skip = D if D is None or D.dim() == 2 else D[:, None].expand(heads, head_dim)
    y, following = x.new_empty(x.shape, dtype=torch.float32), torch.empty_like(state)
    tensors = [t if t is None else t.float().contiguous() for t in (x, dt, A, dt_bias, B, C, skip)]
    sizes = batch, heads, head_dim, size, groups, int(dt_softplus), torch.get_num_threads()
    native.call(SOURCE, "ssd_step", *sizes, _limits(*dt_limit), *tensors, state, y, following)
    return y.to(x.dtype), following


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


@cache
def _limits(low: float, high: float) -> Tensor:
    return torch.tensor([low, high], device="cpu")
