"""The leaky memory in Triton: a program has a block of sequences, whose memories stay in registers over all steps.

The weights are read again at every step, a block of hidden units at a time, so that none of a layer's sizes has to fit
into registers. The gradient's chain runs the same way backwards; what surrounds it is in ``gradient``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common.elementwise import tanh
from zoo.kernels.dispatch import cast
from zoo.kernels.leaky_memory.gradient import gradients
from zoo.kernels.triton_support import block_sizes

DEFAULT = {"hidden": 32, "warps": 4}
ROWS = 16  # sequences of a program, as few as a product of tiles takes


def forward(x, W_in, W_out, bias, decay, gain, state, starts, smooth) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference, of any floating dtypes and strides."""
    given: Any = cast(state.dtype, x, W_in, W_out, bias, decay, gain, state)
    states, final = state.new_empty(*x.shape[:2], state.shape[1]), torch.empty_like(given[-1])
    grid, sizes = _launch("forward", x, state)
    kernel: Any = _forward[grid]
    kernel(
        *given, given[0] if starts is None else starts.contiguous(), states, final, *_sizes(x, state), SMOOTH=smooth,
        PACKED=starts is not None, **sizes,
    )  # fmt: skip
    return states, final


def backward(dy, dstate, x, W_in, W_out, bias, decay, gain, state, starts, smooth) -> tuple[Tensor, ...]:
    """Gradients of x, the weights, the bias, decay, gain and the initial state; memories are computed again."""
    given: Any = cast(state.dtype, dy, dstate, x, W_in, W_out, bias, decay, gain, state, starts)
    states, _ = forward(x, W_in, W_out, bias, decay, gain, state, starts, smooth)
    return gradients(states, _chain, *given, smooth=smooth)


def _chain(dy, dstate, decay, hidden_slope, drive_slope, W_in, W_out, starts) -> tuple[Tensor, ...]:
    g, dkept, dx, dinitial = map(torch.empty_like, (dy, dy, hidden_slope, dstate))
    grid, sizes = _launch("backward", hidden_slope, dstate)
    kernel: Any = _backward[grid]
    kernel(
        dy, dstate, decay, hidden_slope, drive_slope, W_in, W_out, decay if starts is None else starts, g, dx, dkept,
        dinitial, *_sizes(dx, dstate), PACKED=starts is not None, **sizes,
    )  # fmt: skip
    return g, dx, dkept, dinitial


def _sizes(x: Tensor, state: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], state.shape[1], x.shape[2])


def _launch(shape_class: str, x: Tensor, state: Tensor) -> tuple[tuple[int], dict]:
    """Grid over blocks of sequences; launch options."""
    sizes = block_sizes("leaky_memory", shape_class, x.device, DEFAULT)
    options = {"DIM": max(16, triton.next_power_of_2(state.shape[1])), "HIDDEN": sizes["hidden"], "ROWS": ROWS}
    return (triton.cdiv(x.shape[0], ROWS),), options | {"num_warps": sizes["warps"]}


@triton.jit
def _place(batch, dim, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Of this program: sequences (ROWS, 1), units (1, DIM), and which of their pairs exist."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, DIM)[None, :]
    return row, d, (row < batch) & (d < dim)


@triton.jit
def _weights(start, outer, inner, outers, inners, outer_gap, inner_gap):
    """A tile of weights, zeros outside."""
    return tl.load(start + outer * outer_gap + inner * inner_gap, mask=(outer < outers) & (inner < inners), other=0.0)


@triton.jit
def _forward(
    x, W_in, W_out, bias, decay, gain, initial, starts, states, final, batch, length, dim, hidden,
    SMOOTH: tl.constexpr, PACKED: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    row, d, exists = _place(batch, dim, ROWS, DIM)
    keep = tl.load(decay + d, mask=d < dim, other=0.0)
    pull = tl.load(gain + d, mask=d < dim, other=0.0)
    offset = tl.load(bias + d, mask=d < dim, other=0.0)
    memory = tl.load(initial + row * dim + d, mask=exists, other=0.0)
    for t in range(length):
        step = row * length + t
        if PACKED:
            memory = tl.where(tl.load(starts + step, mask=row < batch, other=0) != 0, 0.0, memory)
        kept = keep * memory
        drive = tl.zeros([ROWS, DIM], dtype=memory.dtype) + offset
        for first in range(0, hidden, HIDDEN):
            h = first + tl.arange(0, HIDDEN)[None, :]
            into = _weights(W_in, tl.trans(d), h, dim, hidden, hidden, 1)  # (DIM, HIDDEN)
            logits = tl.load(x + step * hidden + h, mask=(row < batch) & (h < hidden), other=0.0)
            logits = tl.dot(kept, into, logits, input_precision="ieee", out_dtype=memory.dtype)
            units = logits / (1 + tl.exp(-logits)) if SMOOTH else tl.maximum(logits, 0.0)
            out = _weights(W_out, tl.trans(h), d, hidden, dim, dim, 1)  # (HIDDEN, DIM)
            drive = tl.dot(units, out, drive, input_precision="ieee", out_dtype=memory.dtype)
        memory = kept + pull * (1.7159 * tanh(drive * (2 / 3)))
        tl.store(states + step * dim + d, memory, mask=exists)
    tl.store(final + row * dim + d, memory, mask=exists)


@triton.jit
def _backward(
    dy, dfinal, decay, hidden_slope, drive_slope, W_in, W_out, starts, g, dx, dkept, dinitial,
    batch, length, dim, hidden,
    PACKED: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    row, d, exists = _place(batch, dim, ROWS, DIM)
    keep = tl.load(decay + d, mask=d < dim, other=0.0)
    carried = tl.load(dfinal + row * dim + d, mask=exists, other=0.0)
    for back in range(length):
        step = row * length + length - 1 - back
        here = step * dim + d
        arrived = carried + tl.load(dy + here, mask=exists, other=0.0)
        tl.store(g + here, arrived, mask=exists)
        drive = tl.load(drive_slope + here, mask=exists, other=0.0) * arrived
        kept = arrived
        for first in range(0, hidden, HIDDEN):
            h = first + tl.arange(0, HIDDEN)[None, :]
            units = (row < batch) & (h < hidden)
            out = _weights(W_out, tl.trans(d), h, dim, hidden, 1, dim)  # (DIM, HIDDEN)
            slope = tl.load(hidden_slope + step * hidden + h, mask=units, other=0.0)
            gradient = slope * tl.dot(drive, out, input_precision="ieee", out_dtype=arrived.dtype)
            tl.store(dx + step * hidden + h, gradient, mask=units)
            into = _weights(W_in, tl.trans(h), d, hidden, dim, 1, hidden)  # (HIDDEN, DIM)
            kept = tl.dot(gradient, into, kept, input_precision="ieee", out_dtype=arrived.dtype)
        tl.store(dkept + here, kept, mask=exists)
        carried = keep * kept
        if PACKED:
            carried = tl.where(tl.load(starts + step, mask=row < batch, other=0) != 0, 0.0, carried)
    tl.store(dinitial + row * dim + d, carried, mask=exists)
