"""Causal depthwise convolution in Triton: a program a block of steps and channels, bias and silu fused.

The history is the W - 1 inputs of the state and then the T of x, at positions -(W - 1) ... T - 1. ``index`` (B, T)
counts the packed sequences from 0, to which the state belongs; a tap reads positions of its own sequence only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.triton_support import block_sizes

DEFAULT = {"steps": 32, "channels": 64, "warps": 4}


def forward(x, weight, bias, state, starts, silu) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, of any floating dtypes and strides."""
    index, output = _sequence_index(starts), x.new_empty(x.shape)
    arguments, options = _shared(x, weight, bias, state, index, silu)
    grid, sizes = _launch("forward", x, x.shape[1])
    kernel: Any = _outputs[grid]
    kernel(*arguments, output, **options, **sizes)
    return output, _newest(x, state, index)


def backward(dy, dstate, x, weight, bias, state, starts, silu) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias (also when there is none) and the initial state; every sum in a fixed order."""
    (_, length, dim), width = x.shape, weight.shape[1]
    index, wide = _sequence_index(starts), compute_dtype(x, weight)
    arguments, options = _shared(x, weight, bias, state, index, silu)
    grid, sizes = _launch("backward", x, length)
    dsum = x.new_empty(x.shape, dtype=wide)  # gradient of what goes into silu
    parts = x.new_empty(grid[0] // triton.cdiv(dim, sizes["CHANNELS"]), width + 1, dim, dtype=wide)
    kernel: Any = _sums_backward[grid]
    kernel(*arguments, dy, *dy.stride(), dsum, parts, **options, **sizes)
    dx, dinitial = x.new_empty(x.shape), state.new_empty(state.shape)
    grid, sizes = _launch("backward", x, length + width - 1)
    kernel = _inputs_backward[grid]
    kernel(
        dsum, arguments[1], arguments[4], dstate, *dstate.stride(), length, dim, dx, dinitial,
        PACKED=index is not None, WIDTH=width, **sizes,
    )  # fmt: skip
    return dx, parts[:, :width].sum(0).mT.contiguous(), parts[:, width].sum(0), dinitial


def _sequence_index(starts: Tensor | None) -> Tensor | None:
    return None if starts is None else starts.cumsum(1, dtype=torch.int32)


def _newest(x: Tensor, state: Tensor, index: Tensor | None) -> Tensor:
    """The newest W - 1 inputs, zero where they belong to an earlier sequence than the last."""
    before = state.shape[1]
    newest = torch.cat([state, x[:, -before:]], dim=1)[:, -before:]
    if index is None:
        return newest.clone(memory_format=torch.contiguous_format)
    same = F.pad(index[:, -before:], (before, 0))[:, -before:] == index[:, -1:]
    return newest.where(same[..., None], 0)


def _shared(x, weight, bias, state, index, silu) -> tuple[tuple, dict]:
    """Arguments and options of the kernels that sum the taps; x stands in for tensors that are not there.

    The weights go as (W, D), in the dtype to compute in.
    """
    arguments = (
        x, weight.mT.to(compute_dtype(x, weight)).contiguous(), x if bias is None else bias.contiguous(), state,
        x if index is None else index, *x.stride(), *state.stride(), *x.shape[1:],
    )  # fmt: skip
    options = {"BIAS": bias is not None, "PACKED": index is not None, "SILU": silu, "WIDTH": weight.shape[1]}
    return arguments, options


def _launch(shape_class: str, x: Tensor, positions: int) -> tuple[tuple[int], dict]:
    """Grid over blocks of channels (fastest), blocks of positions and the batch; launch options."""
    batch, _, dim = x.shape
    sizes = block_sizes("causal_conv1d", shape_class, x.device, DEFAULT)
    steps = min(sizes["steps"], triton.next_power_of_2(positions))
    channels = min(sizes["channels"], triton.next_power_of_2(dim))
    grid = (batch * triton.cdiv(positions, steps) * triton.cdiv(dim, channels),)
    return grid, {"STEPS": steps, "CHANNELS": channels, "num_warps": sizes["warps"], "enable_fp_fusion": True}


@triton.jit
def _place(positions, dim, STEPS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of this program: batch, number among the blocks of positions, positions (STEPS, 1), channels (1, CHANNELS)."""
    blocks, tiles = tl.cdiv(dim, CHANNELS), tl.cdiv(positions, STEPS)
    part = tl.program_id(0) // blocks
    position = (part % tiles).to(tl.int64) * STEPS + tl.arange(0, STEPS)
    channel = (tl.program_id(0) % blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    return (part // tiles).to(tl.int64), part.to(tl.int64), position[:, None], channel[None, :]


@triton.jit
def _tap(
    k: tl.constexpr, x, state, index, x_t, s_t, t, exists, length, PACKED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What tap k of step t (STEPS, 1) reads (STEPS, CHANNELS), zero where it is in another sequence."""
    position = t + (k - WIDTH + 1)
    exists = exists & (t < length)
    here, earlier = exists & (position >= 0), exists & (position < 0)
    if PACKED:
        own = tl.load(index + t, mask=t < length, other=0)
        same = own == tl.load(index + position, mask=(position >= 0) & (t < length), other=0)
        here, earlier = here & same, earlier & same
    new = tl.load(x + position * x_t, mask=here, other=0.0)
    if k < WIDTH - 1:
        old = tl.load(state + (position + WIDTH - 1) * s_t, mask=earlier, other=0.0)
        new = tl.where(position < 0, old, new)
    return new


@triton.jit
def _outputs(
    x, weight, bias, state, index, x_b, x_t, x_d, s_b, s_t, s_d, length, dim, y,
    BIAS: tl.constexpr, PACKED: tl.constexpr, SILU: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    batch, _part, t, d = _place(length, dim, STEPS, CHANNELS)
    x += batch * x_b + d * x_d
    state += batch * s_b + d * s_d
    index += batch * length
    total = _sum(x, weight, bias, state, index, x_t, s_t, length, dim, t, d, BIAS, PACKED, WIDTH)
    if SILU:
        total = total * tl.sigmoid(total)
    tl.store(y + (batch * length + t) * dim + d, total.to(y.dtype.element_ty), mask=(t < length) & (d < dim))


@triton.jit
def _sum(
    x, weight, bias, state, index, x_t, s_t, length, dim, t, d,
    BIAS: tl.constexpr, PACKED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Bias and all taps of the steps t and channels d."""
    wide = weight.dtype.element_ty
    total = tl.zeros((t.shape[0], d.shape[1]), wide)
    if BIAS:
        total += tl.load(bias + d, mask=d < dim, other=0.0).to(wide)
    for k in tl.static_range(WIDTH):  # pyright: ignore[reportGeneralTypeIssues]
        value = _tap(k, x, state, index, x_t, s_t, t, d < dim, length, PACKED, WIDTH)
        total += value.to(wide) * tl.load(weight + k * dim + d, mask=d < dim, other=0.0)
    return total


@triton.jit
def _sums_backward(
    x, weight, bias, state, index, x_b, x_t, x_d, s_b, s_t, s_d, length, dim, dy, dy_b, dy_t, dy_d, dsum, parts,
    BIAS: tl.constexpr, PACKED: tl.constexpr, SILU: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of the sums before silu; of weight and bias this block's part (parts, W + 1, D), the bias last."""
    batch, part, t, d = _place(length, dim, STEPS, CHANNELS)
    inside = (t < length) & (d < dim)
    x += batch * x_b + d * x_d
    state += batch * s_b + d * s_d
    index += batch * length
    wide = dsum.dtype.element_ty
    gradient = tl.load(dy + batch * dy_b + t * dy_t + d * dy_d, mask=inside, other=0.0).to(wide)
    if SILU:
        total = _sum(x, weight, bias, state, index, x_t, s_t, length, dim, t, d, BIAS, PACKED, WIDTH)
        gate = tl.sigmoid(total)
        gradient *= gate * (1.0 + total * (1.0 - gate))
    tl.store(dsum + (batch * length + t) * dim + d, gradient, mask=inside)
    parts += part * (WIDTH + 1) * dim + d
    for k in tl.static_range(WIDTH):  # pyright: ignore[reportGeneralTypeIssues]
        value = _tap(k, x, state, index, x_t, s_t, t, d < dim, length, PACKED, WIDTH)
        tl.store(parts + k * dim, tl.sum(gradient * value.to(wide), axis=0, keep_dims=True), mask=d < dim)
    tl.store(parts + WIDTH * dim, tl.sum(gradient, axis=0, keep_dims=True), mask=d < dim)


@triton.jit
def _inputs_backward(
    dsum, weight, index, dstate, s_b, s_t, s_d, length, dim, dx, dinitial,
    PACKED: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of the history: through the taps that read a position, and through the final state."""
    batch, _part, position, d = _place(length + WIDTH - 1, dim, STEPS, CHANNELS)
    position -= WIDTH - 1
    exists = d < dim
    dsum += batch * length * dim + d
    index += batch * length
    newest = exists & (position >= length - (WIDTH - 1)) & (position < length)
    if PACKED:
        own = tl.load(index + position, mask=(position >= 0) & (position < length), other=0)
        newest = newest & (own == tl.load(index + length - 1))
    dstate += batch * s_b + (position - length + WIDTH - 1) * s_t + d * s_d
    total = tl.load(dstate, mask=newest, other=0.0).to(dsum.dtype.element_ty)
    for k in tl.static_range(WIDTH):  # pyright: ignore[reportGeneralTypeIssues]
        t = position + (WIDTH - 1 - k)
        reads = exists & (t >= 0) & (t < length)
        if PACKED:
            reads = reads & (own == tl.load(index + t, mask=(t >= 0) & (t < length), other=0))
        total += tl.load(dsum + t * dim, mask=reads, other=0.0) * tl.load(weight + k * dim + d, mask=exists, other=0.0)
    here = exists & (position >= 0) & (position < length)
    tl.store(dx + (batch * length + position) * dim + d, total.to(dx.dtype.element_ty), mask=here)
    before = (batch * (WIDTH - 1) + position + WIDTH - 1) * dim + d
    tl.store(dinitial + before, total.to(dinitial.dtype.element_ty), mask=exists & (position < 0))
