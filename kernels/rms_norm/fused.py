"""RMS normalisation by torch's fused functions, with a backward that keeps nothing but the inputs."""

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
    """Same arguments and results as the reference."""
    if z is not None and not norm_before_gate:
        x = x * F.silu(z)
    if num_groups == 1 and weight is not None and weight.dtype == x.dtype == dtype:
        y, weight = F.rms_norm(x, x.shape[-1:], weight, eps), None
    elif num_groups == 1:
        y = F.rms_norm(x, x.shape[-1:], eps=eps)
    else:
        grouped = x.unflatten(-1, (num_groups, -1))
        y = F.rms_norm(grouped, grouped.shape[-1:], eps=eps).flatten(-2)
    if weight is not None:
        y = y.to(dtype) * weight.to(dtype)
    return y * F.silu(z) if z is not None and norm_before_gate else y


def backward(dy, x, weight, z, num_groups, norm_before_gate, eps, _) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and z, None for what is None; nothing is rounded on the way."""
    gate = None if z is None else F.silu(z)
    inside = x if gate is None or norm_before_gate else x * gate
    grouped = inside.unflatten(-1, (num_groups, -1))
    scale = (grouped.square().mean(-1, keepdim=True) + eps).rsqrt()
    normal = (grouped * scale).flatten(-2)
    weighted = dy if weight is None else dy * weight
    dnormal = weighted if gate is None or not norm_before_gate else weighted * gate
    dgrouped, normal_grouped = (t.unflatten(-1, (num_groups, -1)) for t in (dnormal, normal))
    dinside = (scale * (dgrouped - normal_grouped * (dgrouped * normal_grouped).mean(-1, keepdim=True))).flatten(-2)
    if weight is None:
        dweight = None
    else:
        dweight = (dy * normal if gate is None or not norm_before_gate else dy * normal * gate).flatten(0, -2).sum(0)
    if gate is None:
        return dinside, dweight, None
    dgate = weighted * normal if norm_before_gate else dinside * x
    dx = dinside if norm_before_gate else dinside * gate
    return dx, dweight, torch.ops.aten.silu_backward(dgate, z)
