"""RMS normalisation on the CPU in C (``rms_norm.c``): one pass over a row, threaded over rows."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("rms_norm.c")
BLOCK = 32  # rows whose part of the weight's gradient is one sum


def forward(x, weight, z, num_groups, norm_before_gate, eps, dtype) -> Tensor:
    """Same arguments as the reference, of one dtype; x and z (1, M, D) in rows, the weight contiguous."""
    if weight is None or dtype.itemsize >= x.dtype.itemsize:
        return _normalise(x, weight, z, num_groups, norm_before_gate, eps)
    if z is None or not norm_before_gate:
        return _normalise(x, None, z, num_groups, False, eps).to(dtype) * weight.to(dtype)
    return _normalise(x, None, None, num_groups, False, eps).to(dtype) * weight.to(dtype) * F.silu(z)


def backward(dy, x, weight, z, num_groups, norm_before_gate, eps, _) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and z, None for what is None; nothing is rounded on the way."""
    dx, dz = x.new_empty(x.shape), None if z is None else z.new_empty(z.shape)
    dweight = x.new_empty(-(-x.shape[1] // BLOCK), x.shape[2])
    native.call(
        SOURCE, "rms_norm_backward", *_sizes(x, z, num_groups, norm_before_gate), dy.stride(1), BLOCK, _scalar(x, eps),
        dy, x, _or_ones(weight, x), z, dx, dweight, dz,
    )  # fmt: skip
    return dx, None if weight is None else dweight.sum(0), dz


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _normalise(x, weight, z, num_groups, norm_before_gate, eps) -> Tensor:
    y = x.new_empty(x.shape)
    sizes = _sizes(x, z, num_groups, norm_before_gate)
    native.call(SOURCE, "rms_norm_forward", *sizes, _scalar(x, eps), x, _or_ones(weight, x), z, y)
    return y


def _sizes(x: Tensor, z: Tensor | None, num_groups: int, norm_before_gate: bool) -> tuple[int, ...]:
    """What the C functions take first."""
    z_row = 0 if z is None else z.stride(1)
    rows, dim = x.shape[1:]
    return rows, dim, num_groups, x.stride(1), z_row, torch.get_num_threads(), int(norm_before_gate)


def _or_ones(weight: Tensor | None, x: Tensor) -> Tensor:
    return x.new_ones(x.shape[2]) if weight is None else weight


def _scalar(x: Tensor, value: float) -> Tensor:
    return _constant(value, x.dtype)


@cache
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(value, dtype=dtype, device="cpu")
