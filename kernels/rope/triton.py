"""Rotary embedding in Triton: a program turns the pairs of a block of heads and tokens."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.triton_support import block_sizes

TILE = 1024  # pairs a program


def forward(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Same arguments and results as the reference, of any floating dtypes and strides."""
    batch, length, heads, width = x.shape
    pairs = cos.shape[-1]
    y = x.new_empty(x.shape)
    columns, rest = triton.next_power_of_2(pairs), width - 2 * pairs
    sizes = block_sizes("rope", f"{columns}", x.device, {"rows": max(1, TILE // columns), "warps": 4})
    rows = batch * length * heads
    kernel: Any = _rotate[(triton.cdiv(rows, sizes["rows"]),)]
    with torch.cuda.device_of(x):
        kernel(
            x, cos, sin, y, rows, length, heads, width, pairs, *x.stride(), *_strides(cos), *_strides(sin),
            interleaved, rest > 0, triton.next_power_of_2(max(rest, 1)),
            tl.float64 if compute_dtype(x, cos, sin) == torch.float64 else tl.float32,
            sizes["rows"], columns, num_warps=sizes["warps"], enable_fp_fusion=True,
        )  # fmt: skip
    return y


backward = forward  # given -sin


def _strides(table: Tensor) -> tuple[int, ...]:
    return table.stride() if table.dim() == 3 else (0, *table.stride())


@triton.jit
def _rotate(
    x, cos, sin, y, rows, T, H, K, P, x_batch, x_step, x_head, x_channel, cos_batch, cos_step, cos_pair,
    sin_batch, sin_step, sin_pair,
    INTERLEAVED: tl.constexpr, HAS_REST: tl.constexpr, REST: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y (B, T, H, K), contiguous: ROWS of its B T H rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    head = row % H
    step = row // H % T
    batch = row // H // T
    source = x + batch * x_batch + step * x_step + head * x_head
    target = y + row * K

    pair = tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows) & (pair < P)
    if INTERLEAVED:
        first = 2 * pair
        second = 2 * pair + 1
    else:
        first = pair
        second = pair + P
    a = tl.load(source + first * x_channel, mask=mask, other=0.0).to(REAL)
    b = tl.load(source + second * x_channel, mask=mask, other=0.0).to(REAL)
    c = tl.load(cos + batch * cos_batch + step * cos_step + pair * cos_pair, mask=mask, other=0.0).to(REAL)
    s = tl.load(sin + batch * sin_batch + step * sin_step + pair * sin_pair, mask=mask, other=0.0).to(REAL)
    tl.store(target + first, (a * c - b * s).to(y.dtype.element_ty), mask=mask)
    tl.store(target + second, (b * c + a * s).to(y.dtype.element_ty), mask=mask)

    if HAS_REST:
        channel = 2 * P + tl.arange(0, REST)[None, :]
        mask = (row < rows) & (channel < K)
        tl.store(target + channel, tl.load(source + channel * x_channel, mask=mask, other=0.0), mask=mask)
