"""Functions of single numbers that several Triton kernels use."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """From exp; near 0, where that cancels, by its series, to float32."""
    x = tl.minimum(tl.maximum(x, -20.0), 20.0)
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    small = tl.exp(-2 * tl.abs(x))
    value = (1 - small) / (1 + small)
    value = tl.where(x < 0, -value, value)
    if x.dtype == tl.float32:
        value = tl.where(tl.abs(x) < 0.3, series, value)
    return value
