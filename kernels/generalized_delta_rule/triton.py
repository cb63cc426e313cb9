r"""The generalised delta rule in Triton: the recurrence itself, forwards and backwards, then all chunks at once.

A program has a block of value channels of one head, (K, BV) of its state, in registers. ``_outputs`` runs forwards and
can leave the state before each chunk; with R the gradient of a state and :math:`u = R^\top b`, ``_carry`` runs

.. math::
    R_{t-1} = \mathrm{diag}(\exp g_t) R_t + a_t u_t^\top + \mathrm{scale} \, q_{t-1} dy_{t-1}^\top

backwards, which no state is part of, and leaves the gradient of the state behind each chunk. So ``_gradients`` has all
chunks side by side; it finds the state before each step from the one before the chunk. Sums over the value channels are
made of one part a block, in a fixed order.
"""

# Triton reads constexpr arguments that its annotations do not allow for.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.triton_support import block_sizes

CHUNK = 16  # of the backward pass: half of it is what a step runs through once more
STATE_TILE = 4096  # elements of a state that a program holds at most
SEQUENTIAL = {"values": 16, "warps": 2}  # value channels a program
PARALLEL = {"values": 64, "warps": 4}


def forward(q, k, v, a, b, log_decay, state, starts, scale, chunk_size) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference, of any floating dtype and strides; computed in the dtype of ``state``."""
    launch = _Launch(q, k, v, a, b, log_decay, starts, scale)
    output, final = launch.like(v), launch.like(state)
    launch("forward", SEQUENTIAL, _outputs, state.contiguous(), output, final, final, KEEP=False)
    return output, final


def backward(dy, dstate, q, k, v, a, b, log_decay, state, starts, scale, chunk_size) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, a, b, log_decay and the initial state; every sum in a fixed order."""
    launch = _Launch(q, k, v, a, b, log_decay, starts, scale)
    dy, dv, dinitial = dy.contiguous(), launch.like(v), launch.like(state)
    before, after = (state.new_empty(launch.chunks, *state.shape) for _ in range(2))
    launch("forward", SEQUENTIAL, _outputs, state.contiguous(), dv, before, dinitial, KEEP=True)
    launch("carry", SEQUENTIAL, _carry, dy, dstate.contiguous(), after, dinitial)
    blocks, _ = launch.sizes("backward", PARALLEL)
    parts = [state.new_empty(blocks, *q.shape) for _ in range(5)]
    launch("backward", PARALLEL, _gradients, dy, before, after, dv, *parts, across=launch.chunks)
    dq, dk, da, db, dg = (part.sum(0) for part in parts)
    return dq, dk, dv, da, db, dg, dinitial


class _Launch:
    """A kernel over heads (x chunks) x blocks of value channels, with the arguments that all of them share."""

    def __init__(self, q, k, v, a, b, log_decay, starts, scale):
        batch, length, heads, self.key_dim = q.shape
        self.value_dim, self.device, self.programs = v.shape[3], q.device, batch * heads
        self.chunks, self.all_keys = triton.cdiv(length, CHUNK), triton.next_power_of_2(self.key_dim)
        starts = q if starts is None else starts.contiguous()
        inputs = (t.contiguous() for t in (q, k, v, a, b, log_decay, starts))
        self.arguments = (*inputs, length, heads, self.key_dim, self.value_dim)
        self.options = {"PACKED": starts is not q, "SCALE": scale, "CHUNK": CHUNK, "BK": self.all_keys}

    def like(self, tensor: Tensor) -> Tensor:
        """Uninitialised and contiguous."""
        return tensor.new_empty(tensor.shape)

    def sizes(self, shape_class: str, default: dict[str, int]) -> tuple[int, dict[str, int]]:
        """Blocks of value channels, and the options of a launch."""
        sizes = block_sizes("generalized_delta_rule", shape_class, self.device, default)
        fits = max(1, STATE_TILE // self.all_keys)
        values = min(sizes["values"], fits, triton.next_power_of_2(self.value_dim))
        return triton.cdiv(self.value_dim, values), {
            "BV": values, "num_warps": sizes["warps"], "enable_fp_fusion": True
        }  # fmt: skip

    def __call__(self, shape_class, default, kernel: Any, *arguments, across: int = 1, **options) -> None:
        blocks, sizes = self.sizes(shape_class, default)
        with torch.cuda.device_of(self.arguments[0]):
            kernel[self.programs * across, blocks](*self.arguments, *arguments, **options, **self.options, **sizes)


@triton.jit
def _place(bh, T, H, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """Of this program: offsets of its keys and its values at step 0, of its state (BK, BV) and what of it exists."""
    keys, values = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    in_keys, in_values = keys < K, values < V
    first = bh // H * T * H + bh % H
    tile = keys[:, None] * V + values[None, :]
    return first * K + keys, first * V + values, bh * K * V + tile, in_keys, in_values


@triton.jit
def _vector(pointer, exists, like):
    return tl.load(pointer, mask=exists, other=0.0).to(like.dtype)


@triton.jit
def _entering(state, starts, t, PACKED: tl.constexpr):
    """The state before step t, or zeros where another sequence begins."""
    if PACKED:
        state = tl.where(tl.load(starts + t) != 0, 0.0, state)
    return state


@triton.jit
def _advance(state, k, v, a, b, g, of_keys, of_values, in_keys, in_values):
    """What a step reads of the state before it, and the state after it."""
    read = tl.sum(_vector(a + of_keys, in_keys, state)[:, None] * state, 0)
    value = _vector(v + of_values, in_values, state)
    state = tl.exp(_vector(g + of_keys, in_keys, state))[:, None] * state
    state += _vector(b + of_keys, in_keys, state)[:, None] * read[None, :]
    return read, state + _vector(k + of_keys, in_keys, state)[:, None] * value[None, :]


@triton.jit
def _outputs(
    q, k, v, a, b, g, starts, T, H, K, V, initial, y, before, final,
    KEEP: tl.constexpr, PACKED: tl.constexpr, SCALE: tl.constexpr, CHUNK: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr,
):  # fmt: skip
    """y and the final state, or (KEEP) the state before each chunk (chunks, B, H, K, V)."""
    bh = tl.program_id(0).to(tl.int64)
    of_keys, of_values, of_state, in_keys, in_values = _place(bh, T, H, K, V, BK, BV)
    in_state = in_keys[:, None] & in_values[None, :]
    starts += bh // H * T
    state = tl.load(initial + of_state, mask=in_state, other=0.0)
    for index in range(T):
        t = tl.cast(index, tl.int64)
        if KEEP:
            of_chunk = t // CHUNK * tl.num_programs(0) * K * V
            if t % CHUNK == 0:
                tl.store(before + of_chunk + of_state, state, mask=in_state)
        keys, values = of_keys + t * H * K, of_values + t * H * V
        state = _entering(state, starts, t, PACKED)
        _read, state = _advance(state, k, v, a, b, g, keys, values, in_keys, in_values)
        if not KEEP:
            out = tl.sum(_vector(q + keys, in_keys, state)[:, None] * state, 0) * SCALE
            tl.store(y + values, out.to(y.dtype.element_ty), mask=in_values)
    if not KEEP:
        tl.store(final + of_state, state, mask=in_state)


@triton.jit
def _retreat(R, q, dy, a, b, g, of_keys, of_values, in_keys, in_values, SCALE: tl.constexpr):
    """Of the gradient of the state that later steps give: all of it, its u, the decay, and that of the state before."""
    R += SCALE * _vector(q + of_keys, in_keys, R)[:, None] * _vector(dy + of_values, in_values, R)[None, :]
    u = tl.sum(_vector(b + of_keys, in_keys, R)[:, None] * R, 0)
    decay = tl.exp(_vector(g + of_keys, in_keys, R))
    return R, u, decay, decay[:, None] * R + _vector(a + of_keys, in_keys, R)[:, None] * u[None, :]


@triton.jit
def _carry(
    q, k, v, a, b, g, starts, T, H, K, V, dy, dfinal, after, dinitial,
    PACKED: tl.constexpr, SCALE: tl.constexpr, CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradient that later chunks give the state behind each chunk (chunks, B, H, K, V), and that of the initial."""
    bh = tl.program_id(0).to(tl.int64)
    of_keys, of_values, of_state, in_keys, in_values = _place(bh, T, H, K, V, BK, BV)
    in_state = in_keys[:, None] & in_values[None, :]
    starts += bh // H * T
    R = tl.load(dfinal + of_state, mask=in_state, other=0.0)
    for index in range(T):
        t = T - 1 - tl.cast(index, tl.int64)
        if (t == T - 1) | (t % CHUNK == CHUNK - 1):
            tl.store(after + t // CHUNK * tl.num_programs(0) * K * V + of_state, R, mask=in_state)
        keys, values = of_keys + t * H * K, of_values + t * H * V
        _R, _u, _decay, R = _retreat(R, q, dy, a, b, g, keys, values, in_keys, in_values, SCALE)
        R = _entering(R, starts, t, PACKED)
    tl.store(dinitial + of_state, R, mask=in_state)


@triton.jit
def _gradients(
    q, k, v, a, b, g, starts, T, H, K, V, dy, before, after, dv, dq, dk, da, db, dg,
    PACKED: tl.constexpr, SCALE: tl.constexpr, CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients within a chunk; all but dv (blocks, B, T, H, K), one part a block of value channels."""
    heads = tl.num_programs(0).to(tl.int64) // tl.cdiv(T, CHUNK)  # B H
    chunk, bh = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    of_keys, of_values, of_state, in_keys, in_values = _place(bh, T, H, K, V, BK, BV)
    in_state = in_keys[:, None] & in_values[None, :]
    starts += bh // H * T
    part = tl.program_id(1) * heads * T * K
    dq, dk, da, db, dg = dq + part, dk + part, da + part, db + part, dg + part
    boundary = tl.load(before + chunk * heads * K * V + of_state, mask=in_state, other=0.0)
    R = tl.load(after + chunk * heads * K * V + of_state, mask=in_state, other=0.0)
    first = chunk * CHUNK
    stop = tl.minimum(first + CHUNK, T)
    for index in range(stop - first):
        t = stop - 1 - index
        state = boundary
        for s in range(first, t):
            state = _entering(state, starts, s, PACKED)
            _read, state = _advance(
                state, k, v, a, b, g, of_keys + s * H * K, of_values + s * H * V, in_keys, in_values
            )
        keys, values = of_keys + t * H * K, of_values + t * H * V
        state = _entering(state, starts, t, PACKED)
        read, next_state = _advance(state, k, v, a, b, g, keys, values, in_keys, in_values)
        R, u, decay, dstate = _retreat(R, q, dy, a, b, g, keys, values, in_keys, in_values, SCALE)
        arriving, value = SCALE * _vector(dy + values, in_values, R), _vector(v + values, in_values, R)
        of_value = tl.sum(_vector(k + keys, in_keys, R)[:, None] * R, 0)
        tl.store(dv + values, of_value.to(dv.dtype.element_ty), mask=in_values)
        tl.store(dq + keys, tl.sum(next_state * arriving[None, :], 1), mask=in_keys)
        tl.store(dk + keys, tl.sum(R * value[None, :], 1), mask=in_keys)
        tl.store(da + keys, tl.sum(state * u[None, :], 1), mask=in_keys)
        tl.store(db + keys, tl.sum(R * read[None, :], 1), mask=in_keys)
        tl.store(dg + keys, decay * tl.sum(R * state, 1), mask=in_keys)
        R = _entering(dstate, starts, t, PACKED)
