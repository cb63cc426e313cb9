"""The long convolution on the CPU in C (``long_conv.c``): transforms over 32 channels at a time, in the cache."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("long_conv.c")


def forward(u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool) -> Tensor:
    """Same arguments and result as the reference; u and gate in rows, the others contiguous."""
    y = u.new_empty(u.shape)
    sizes, roots = _sizes(u, kernel, circular)
    native.call(SOURCE, "long_conv_forward", *sizes, u.stride(1), _row(gate), roots, u, kernel, D, gate, y)
    return y


def backward(
    dy: Tensor, u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of u, kernel, D and gate; dy in rows."""
    du, dkernel, dD, dgate = (None if t is None else t.new_empty(t.shape) for t in (u, kernel, D, gate))
    sizes, roots = _sizes(u, kernel, circular)
    native.call(
        SOURCE, "long_conv_backward", *sizes, u.stride(1), _row(gate), dy.stride(1), roots,
        dy, u, kernel, D, gate, du, dkernel, dD, dgate,
    )  # fmt: skip
    return du, dkernel, dD, dgate  # type: ignore[return-value]


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def prepare(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of one dtype; activations (B, T, D) in rows, the kernel contiguous."""
    return tuple(t if t is None or t.dim() > 2 else t.contiguous() for t in native.in_rows(dtype, *tensors))


def _sizes(u: Tensor, kernel: Tensor, circular: bool) -> tuple[tuple[int, ...], Tensor]:
    """What the C functions take first, and the roots of unity."""
    (batch, length, dim), taps = u.shape, kernel.shape[1]
    whole = circular and length & (length - 1) == 0
    n = length if whole else 1 << (length + taps - 2).bit_length()
    return (batch, length, taps, dim, n, int(circular), torch.get_num_threads()), _roots(n, u.dtype)


@functools.lru_cache(maxsize=16)
def _roots(n: int, dtype: torch.dtype) -> Tensor:
    """exp(-2 pi i m / n) for m < 3n / 4: (3n / 4, 2)."""
    angle = torch.arange(max(1, 3 * n // 4), dtype=torch.float64) * (-2 * math.pi / n)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).to(dtype)


def _row(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(1)
