"""RMS normalisation as its definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor | None,
    z: Tensor | None,
    num_groups: int,
    norm_before_gate: bool,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """x and z (..., D), weight (D,), of the compute dtype; the normalised values are rounded to ``dtype``."""
    if z is not None and not norm_before_gate:
        x = x * F.silu(z)
    grouped = x.unflatten(-1, (num_groups, -1))
    y = (grouped / (grouped.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(-2)
    if weight is not None:
        y = y.to(dtype) * weight.to(dtype)
    return y * F.silu(z) if z is not None and norm_before_gate else y
