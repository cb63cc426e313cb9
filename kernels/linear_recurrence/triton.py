"""The diagonal recurrence in Triton: tiles of steps one after another, an associative scan within each.

A program has a block of channels of one sequence. The gradient of x runs through the same scan backwards in time; the
states that the gradient of the decay needs are computed once more before it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.triton_support import block_sizes

DEFAULT = {"steps": 64, "channels": 32, "warps": 4}


def forward(x, log_decay, state, starts) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, of any floating dtypes and strides."""
    return _states(x, log_decay, state, starts, x.dtype)


def backward(dy, dstate, x, log_decay, state, starts) -> tuple[Tensor, ...]:
    """Gradients of x, log_decay and the initial state."""
    states, _ = _states(x, log_decay, state, starts, state.dtype)
    dx, ddecay, dinitial = x.new_empty(x.shape), log_decay.new_empty(x.shape), state.new_empty(state.shape)
    grid, sizes = _launch("backward", x)
    kernel: Any = _backward[grid]
    kernel(
        dy, log_decay, state, log_decay if starts is None else starts, *dy.stride(), *log_decay.stride(),
        *state.stride(), *x.shape[1:], dstate, *dstate.stride(), states, dx, ddecay, dinitial,
        PACKED=starts is not None, **sizes,
    )  # fmt: skip
    return dx, ddecay, dinitial


def _states(x, log_decay, state, starts, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    output, final = x.new_empty(x.shape, dtype=dtype), state.new_empty(state.shape)
    grid, sizes = _launch("forward", x)
    kernel: Any = _forward[grid]
    kernel(
        x, log_decay, state, log_decay if starts is None else starts, *x.stride(), *log_decay.stride(),
        *state.stride(), *x.shape[1:], output, final, PACKED=starts is not None, **sizes,
    )  # fmt: skip
    return output, final


def _launch(shape_class: str, x: Tensor) -> tuple[tuple[int], dict]:
    """Grid over blocks of channels (fastest) and the batch; launch options."""
    batch, length, dim = x.shape
    sizes = block_sizes("linear_recurrence", shape_class, x.device, DEFAULT)
    steps = min(sizes["steps"], triton.next_power_of_2(length))
    channels = min(sizes["channels"], triton.next_power_of_2(dim))
    options = {"STEPS": steps, "CHANNELS": channels, "num_warps": sizes["warps"], "enable_fp_fusion": True}
    return (batch * triton.cdiv(dim, channels),), options


@triton.jit
def _place(dim, CHANNELS: tl.constexpr):
    """Of this program: batch, channels (1, CHANNELS), which of them exist."""
    blocks = tl.cdiv(dim, CHANNELS)
    channel = (tl.program_id(0) % blocks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return (tl.program_id(0) // blocks).to(tl.int64), channel, channel < dim


@triton.jit
def _decay(g, starts, t, g_t, exists, length, like, PACKED: tl.constexpr):
    """exp g of the steps t (STEPS, 1), 0 where a sequence starts and 1 outside the sequence."""
    inside = (t >= 0) & (t < length)
    decay = tl.exp(tl.load(g + t * g_t, mask=inside & exists, other=0.0).to(like))
    if PACKED:
        decay = tl.where(tl.load(starts + t, mask=inside, other=0) != 0, 0.0, decay)
    return decay


@triton.jit
def _then(first_decay, first, second_decay, second):
    """Two steps h -> decay h + sum, one after the other, as one."""
    return first_decay * second_decay, second_decay * first + second


@triton.jit
def _row(tile, t, wanted):
    """The row of a tile (STEPS, CHANNELS) at step ``wanted``."""
    return tl.sum(tl.where(t == wanted, tile, 0.0), axis=0, keep_dims=True)


@triton.jit
def _forward(
    x, g, state, starts, x_b, x_t, x_d, g_b, g_t, g_d, s_b, s_d, length, dim, y, final,
    PACKED: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    batch, d, exists = _place(dim, CHANNELS)
    x += batch * x_b + d * x_d
    g += batch * g_b + d * g_d
    starts += batch * length
    wide = final.dtype.element_ty
    before = tl.load(state + batch * s_b + d * s_d, mask=exists, other=0.0).to(wide)
    for first in range(0, length, STEPS):
        t = first + tl.arange(0, STEPS)[:, None].to(tl.int64)
        inside = (t < length) & exists
        decay = _decay(g, starts, t, g_t, exists, length, wide, PACKED)
        inputs = tl.load(x + t * x_t, mask=inside, other=0.0).to(wide)
        product, total = tl.associative_scan((decay, inputs), 0, _then)
        states = product * before + total
        tl.store(y + (batch * length + t) * dim + d, states.to(y.dtype.element_ty), mask=inside)
        before = _row(states, t, first + STEPS - 1)
    tl.store(final + batch * dim + d, before, mask=exists)


@triton.jit
def _backward(
    dy, g, state, starts, dy_b, dy_t, dy_d, g_b, g_t, g_d, s_b, s_d, length, dim, dfinal, df_b, df_d, states, dx, dg,
    dinitial, PACKED: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx[t] = exp(g[t+1]) dx[t+1] + dy[t], behind the end the gradient of the final state."""
    batch, d, exists = _place(dim, CHANNELS)
    dy += batch * dy_b + d * dy_d
    g += batch * g_b + d * g_d
    starts += batch * length
    states += batch * length * dim + d
    wide = dinitial.dtype.element_ty
    initial = tl.load(state + batch * s_b + d * s_d, mask=exists, other=0.0).to(wide)
    after = tl.load(dfinal + batch * df_b + d * df_d, mask=exists, other=0.0).to(wide)
    tiles = tl.cdiv(length, STEPS)
    for tile in range(tiles):
        first = (tiles - 1 - tile) * STEPS
        t = first + tl.arange(0, STEPS)[:, None].to(tl.int64)
        inside = (t < length) & exists
        following = _decay(g, starts, t + 1, g_t, exists, length, wide, PACKED)
        arriving = tl.load(dy + t * dy_t, mask=inside, other=0.0).to(wide)
        product, total = tl.associative_scan((following, arriving), 0, _then, reverse=True)
        gradient = product * after + total
        here = (batch * length + t) * dim + d
        tl.store(dx + here, gradient.to(dx.dtype.element_ty), mask=inside)
        before = tl.load(states + (t - 1) * dim, mask=inside & (t > 0), other=0.0)
        through = gradient * _decay(g, starts, t, g_t, exists, length, wide, PACKED)
        slope = through * tl.where(t == 0, initial, before)
        tl.store(dg + here, slope.to(dg.dtype.element_ty), mask=inside)
        after = _row(gradient, t, first)
        if first == 0:
            tl.store(dinitial + batch * dim + d, _row(through, t, 0), mask=exists)
