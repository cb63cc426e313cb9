"""Selective scan in Triton: chunks of steps side by side, each from the state that the chunks before it leave.

The steps of a chunk are one elementwise map of the state, h -> P h + S. ``_summaries`` finds P and S of every chunk,
``_carry`` the state before each, ``_outputs`` then runs all chunks at once. The state's gradient goes backwards through
the same P, with R in place of S; ``_gradients`` recomputes the states inside a chunk from its boundary, four at a time.
A program holds the states of a block of channels, (STATE, CHANNELS), in registers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.triton_support import block_sizes

CARRY_BLOCK = 128  # states a program of _carry
LARGEST_WARPS = 8
FORWARD = {"chunk": 64, "channels": 32, "elements_a_warp": 256}  # steps and channels a program; of its state tile
BACKWARD = {"chunk": 16, "channels": 32, "elements_a_warp": 256}


def forward(x, dt, A, B, C, state, starts) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference, of any floating dtype and strides; computed in the dtype of ``state``."""
    launch = _Launch("forward", FORWARD, x, dt, A, B, C, state, starts)
    output = x.new_empty(x.shape)
    if launch.chunks == 1:
        before, final = state.mT[:, None].contiguous(), state.new_empty(state.shape)
    else:
        P, S = (launch.new_states() for _ in range(2))
        launch(_summaries, x, 0, 0, 0, P, S, S, BACKWARD=False)
        before, final = _carried(P, S, state, reverse=False)
    launch(_outputs, before, output, final)
    return output, final


def backward(dy, dstate, x, dt, A, B, C, state, starts) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C and the initial state; every sum in a fixed order."""
    launch = _Launch("backward", BACKWARD, x, dt, A, B, C, state, starts)
    P, S, R = (launch.new_states() for _ in range(3))
    launch(_summaries, dy, *dy.stride(), P, S, R, BACKWARD=True)
    before, _ = _carried(P, S, state, reverse=False)
    after, dinitial = _carried(P, R, dstate, reverse=True)
    del S, R
    dx, ddt, dA = x.new_empty(x.shape), dt.new_empty(dt.shape), P
    dB, dC = (state.new_empty(launch.blocks, *B.shape) for _ in range(2))
    launch(_gradients, dy, *dy.stride(), before, after, dx, ddt, dA, dB, dC)
    return dx, ddt, dA.sum((0, 1)).mT, dB.sum(0), dC.sum(0), dinitial


class _Launch:
    """A kernel over (group, block of its channels) x chunks x batch, with the arguments that all of them share."""

    def __init__(self, shape_class, default, x, dt, A, B, C, state, starts):
        batch, length, dim = x.shape
        groups, size = B.shape[2:]
        sizes = block_sizes("selective_scan", shape_class, x.device, default)
        padded = triton.next_power_of_2(size)
        fits = max(1, LARGEST_WARPS * sizes["elements_a_warp"] // padded)
        channels = min(sizes["channels"], fits, triton.next_power_of_2(dim // groups))
        self.chunks, self.blocks = triton.cdiv(length, sizes["chunk"]), triton.cdiv(dim // groups, channels)
        self.grid = (self.blocks * groups * self.chunks * batch,)
        self.new_states = lambda: state.new_empty(batch, self.chunks, size, dim)
        self.arguments = (
            x, dt, A.mT.contiguous(), B, C, A if starts is None else starts.contiguous().view(torch.uint8),
            *x.stride(), *dt.stride(), *B.stride(), *C.stride(), length, dim, groups, self.blocks, self.chunks,
        )  # fmt: skip
        self.options = {
            "HAS_STARTS": starts is not None, "CHUNK": sizes["chunk"], "N": size, "STATE": padded, "CHANNELS": channels,
            "num_warps": max(1, min(LARGEST_WARPS, padded * channels // sizes["elements_a_warp"])),
            "enable_fp_fusion": True,
        }  # fmt: skip

    def __call__(self, kernel, *arguments, **options) -> None:
        kernel[self.grid](*self.arguments, *arguments, **self.options, **options)


def _carried(P: Tensor, S: Tensor, first: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The state that enters each chunk (B, chunks, N, D), and the one (B, D, N) that leaves the last."""
    batch, chunks, size, dim = P.shape
    before, last = torch.empty_like(S), first.new_empty(first.shape)
    kernel: Any = _carry[(batch * triton.cdiv(size * dim, CARRY_BLOCK),)]
    kernel(P, S, first, before, last, *first.stride(), chunks, dim, size, reverse, CARRY_BLOCK, enable_fp_fusion=True)
    return before, last


@triton.jit
def _place(length, dim, groups, blocks, chunks, CHUNK: tl.constexpr, CHANNELS: tl.constexpr):
    """Of this program: batch, chunk, its first step and the one after its last, group, block, channels, which exist."""
    index = tl.program_id(0)
    block = index % blocks
    group = index // blocks % groups
    chunk = index // (blocks * groups) % chunks
    batch = (index // (blocks * groups * chunks)).to(tl.int64)
    within = block * CHANNELS + tl.arange(0, CHANNELS)
    channel = (group * (dim // groups) + within).to(tl.int64)
    exists = within < dim // groups
    first = chunk.to(tl.int64) * CHUNK
    stop = tl.minimum(first + CHUNK, length)
    return batch, chunk, first, stop, group.to(tl.int64), block, channel, exists


@triton.jit
def _advance(h, rate, x_here, dt_here, B_here, starts_here, step, exists, in_state, HAS_STARTS: tl.constexpr):
    """One step: decay and next state (STATE, CHANNELS). Where ``step`` is false the step size is 0: nothing changes."""
    exists, in_state = tl.where(step, exists, False), tl.where(step, in_state, False)
    x = tl.load(x_here, mask=exists, other=0.0).to(h.dtype)
    dt = tl.load(dt_here, mask=exists, other=0.0).to(h.dtype)
    B = tl.load(B_here, mask=in_state, other=0.0).to(h.dtype)
    decay = tl.exp(dt[None, :] * rate)
    if HAS_STARTS:
        decay = tl.where(tl.load(starts_here, mask=step, other=0) != 0, 0.0, decay)
    return decay, decay * h + (dt * x)[None, :] * B[:, None]


@triton.jit
def _summaries(
    x, dt, A, B, C, starts,
    x_b, x_t, x_d, dt_b, dt_t, dt_d, B_b, B_t, B_g, B_n, C_b, C_t, C_g, C_n, length, dim, groups, blocks, chunks,
    dy, dy_b, dy_t, dy_d, P, S, R,
    HAS_STARTS: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr, STATE: tl.constexpr, CHANNELS: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """P: product of a chunk's decays; S: its state from zero; R: the gradient its outputs give the state before it."""
    batch, chunk, first, stop, group, _block, d, exists = _place(length, dim, groups, blocks, chunks, CHUNK, CHANNELS)
    n = tl.arange(0, STATE)
    in_state = n < N
    tile, in_tile = n[:, None] * dim + d[None, :], in_state[:, None] & exists[None, :]
    rate = tl.load(A + tile, mask=in_tile, other=0.0).to(P.dtype.element_ty)
    product = tl.full((STATE, CHANNELS), 1.0, P.dtype.element_ty)
    state = tl.zeros((STATE, CHANNELS), P.dtype.element_ty)
    gradient = tl.zeros((STATE, CHANNELS), P.dtype.element_ty)
    for t in range(first, stop):
        decay, state = _advance(
            state, rate, x + batch * x_b + t * x_t + d * x_d, dt + batch * dt_b + t * dt_t + d * dt_d,
            B + batch * B_b + t * B_t + group * B_g + n * B_n, starts + batch * length + t,
            True, exists, in_state, HAS_STARTS,
        )  # fmt: skip
        product *= decay
        if BACKWARD:
            c = tl.load(C + batch * C_b + t * C_t + group * C_g + n * C_n, mask=in_state, other=0.0)
            dout = tl.load(dy + batch * dy_b + t * dy_t + d * dy_d, mask=exists, other=0.0)
            gradient += product * c.to(product.dtype)[:, None] * dout.to(product.dtype)[None, :]
    here = (batch * chunks + chunk) * N * dim + tile
    tl.store(P + here, product, mask=in_tile)
    tl.store(S + here, state, mask=in_tile)
    if BACKWARD:
        tl.store(R + here, gradient, mask=in_tile)


@triton.jit
def _carry(P, S, initial, before, last, i_b, i_d, i_n, chunks, dim, size, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """h -> P h + S over the chunks, for BLOCK elements of the state; loads run four chunks ahead of their use."""
    blocks = tl.cdiv(size * dim, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = element < size * dim
    d, n = (element % dim).to(tl.int64), (element // dim).to(tl.int64)
    h = tl.load(initial + batch * i_b + d * i_d + n * i_n, mask=inside, other=0.0).to(P.dtype.element_ty)
    first, towards = batch * chunks, 1
    if REVERSE:
        first, towards = first + chunks - 1, -1
    for c in range(0, chunks, 4):
        at0 = (first + towards * c) * size * dim + element
        at1, at2, at3 = at0 + towards * size * dim, at0 + 2 * towards * size * dim, at0 + 3 * towards * size * dim
        in1 = tl.where(c + 1 < chunks, inside, False)
        in2 = tl.where(c + 2 < chunks, inside, False)
        in3 = tl.where(c + 3 < chunks, inside, False)
        p0, s0 = tl.load(P + at0, mask=inside, other=1.0), tl.load(S + at0, mask=inside, other=0.0)
        p1, s1 = tl.load(P + at1, mask=in1, other=1.0), tl.load(S + at1, mask=in1, other=0.0)
        p2, s2 = tl.load(P + at2, mask=in2, other=1.0), tl.load(S + at2, mask=in2, other=0.0)
        p3, s3 = tl.load(P + at3, mask=in3, other=1.0), tl.load(S + at3, mask=in3, other=0.0)
        tl.store(before + at0, h, mask=inside)
        h = p0 * h + s0
        tl.store(before + at1, h, mask=in1)
        h = p1 * h + s1
        tl.store(before + at2, h, mask=in2)
        h = p2 * h + s2
        tl.store(before + at3, h, mask=in3)
        h = p3 * h + s3
    tl.store(last + batch * size * dim + d * size + n, h, mask=inside)


@triton.jit
def _outputs(
    x, dt, A, B, C, starts,
    x_b, x_t, x_d, dt_b, dt_t, dt_d, B_b, B_t, B_g, B_n, C_b, C_t, C_g, C_n, length, dim, groups, blocks, chunks,
    before, y, final,
    HAS_STARTS: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr, STATE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y of a chunk from the state before it; the last chunk leaves the final state."""
    batch, chunk, first, stop, group, _block, d, exists = _place(length, dim, groups, blocks, chunks, CHUNK, CHANNELS)
    n = tl.arange(0, STATE)
    in_state = n < N
    tile, in_tile = n[:, None] * dim + d[None, :], in_state[:, None] & exists[None, :]
    state = tl.load(before + (batch * chunks + chunk) * N * dim + tile, mask=in_tile, other=0.0)
    rate = tl.load(A + tile, mask=in_tile, other=0.0).to(state.dtype)
    for t in range(first, stop):
        _decay, state = _advance(
            state, rate, x + batch * x_b + t * x_t + d * x_d, dt + batch * dt_b + t * dt_t + d * dt_d,
            B + batch * B_b + t * B_t + group * B_g + n * B_n, starts + batch * length + t,
            True, exists, in_state, HAS_STARTS,
        )  # fmt: skip
        c = tl.load(C + batch * C_b + t * C_t + group * C_g + n * C_n, mask=in_state, other=0.0).to(state.dtype)
        out = tl.sum(state * c[:, None], axis=0)
        tl.store(y + (batch * length + t) * dim + d, out.to(y.dtype.element_ty), mask=exists)
    if chunk == chunks - 1:
        tl.store(final + batch * N * dim + d[None, :] * N + n[:, None], state, mask=in_tile)


@triton.jit
def _retreat(
    dh, da, decay, before, after, rate, x_here, dt_here, B_here, C_here, dy_here, dx_here, ddt_here, dB_here,
    dC_here, step, exists, in_state,
):  # fmt: skip
    """One step back: the gradient of the state after it becomes that of the state before; the step's own are stored."""
    exists, in_state = tl.where(step, exists, False), tl.where(step, in_state, False)
    x = tl.load(x_here, mask=exists, other=0.0).to(rate.dtype)
    dt = tl.load(dt_here, mask=exists, other=0.0).to(rate.dtype)
    dout = tl.load(dy_here, mask=exists, other=0.0).to(rate.dtype)
    B = tl.load(B_here, mask=in_state, other=0.0).to(rate.dtype)
    C = tl.load(C_here, mask=in_state, other=0.0).to(rate.dtype)
    dh += C[:, None] * dout[None, :]
    tl.store(dC_here, tl.sum(after * dout[None, :], axis=1), mask=in_state)
    tl.store(dB_here, tl.sum(dh * (dt * x)[None, :], axis=1), mask=in_state)
    dinput = tl.sum(dh * B[:, None], axis=0)
    dh *= decay
    dlog = dh * before  # of the logarithm of the decay, dt A
    ddt = tl.sum(dlog * rate, axis=0) + dinput * x
    tl.store(dx_here, (dinput * dt).to(dx_here.dtype.element_ty), mask=exists)
    tl.store(ddt_here, ddt.to(ddt_here.dtype.element_ty), mask=exists)
    return dh, da + dlog * dt[None, :]


@triton.jit
def _gradients(
    x, dt, A, B, C, starts,
    x_b, x_t, x_d, dt_b, dt_t, dt_d, B_b, B_t, B_g, B_n, C_b, C_t, C_g, C_n, length, dim, groups, blocks, chunks,
    dy, dy_b, dy_t, dy_d, before, after, dx, ddt, dA, dB, dC,
    HAS_STARTS: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr, STATE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients within a chunk: ``before`` is the state before it, ``after`` the gradient of the state after it.

    dA (B, chunks, N, D) and dB, dC (blocks, B, T, G, N) are partial sums: of a chunk, and of a block of channels.
    """
    batch, chunk, first, stop, group, block, d, exists = _place(length, dim, groups, blocks, chunks, CHUNK, CHANNELS)
    n = tl.arange(0, STATE)
    in_state = n < N
    tile, in_tile = n[:, None] * dim + d[None, :], in_state[:, None] & exists[None, :]
    here = (batch * chunks + chunk) * N * dim + tile
    boundary = tl.load(before + here, mask=in_tile, other=0.0)
    dh = tl.load(after + here, mask=in_tile, other=0.0)
    rate = tl.load(A + tile, mask=in_tile, other=0.0).to(boundary.dtype)
    da = tl.zeros((STATE, CHANNELS), boundary.dtype)

    x += batch * x_b + d * x_d
    dt += batch * dt_b + d * dt_d
    dy += batch * dy_b + d * dy_d
    B += batch * B_b + group * B_g + n * B_n
    C += batch * C_b + group * C_g + n * C_n
    starts += batch * length
    dx += batch * length * dim + d
    ddt += batch * length * dim + d
    rows = tl.num_programs(0).to(tl.int64) // (chunks * groups * blocks) * length  # B T
    partial = ((block * rows + batch * length) * groups + group) * N + n
    dB += partial
    dC += partial
    row = groups * N

    tiles = tl.cdiv(stop - first, 4)
    for i in range(tiles):
        t0 = first + (tiles - 1 - i) * 4
        t1, t2, t3 = t0 + 1, t0 + 2, t0 + 3
        h0 = boundary
        for t in range(first, t0):
            decay0, h0 = _advance(
                h0, rate, x + t * x_t, dt + t * dt_t, B + t * B_t, starts + t, True, exists, in_state, HAS_STARTS
            )
        decay0, h1 = _advance(
            h0, rate, x + t0 * x_t, dt + t0 * dt_t, B + t0 * B_t, starts + t0, True, exists, in_state, HAS_STARTS
        )
        decay1, h2 = _advance(
            h1, rate, x + t1 * x_t, dt + t1 * dt_t, B + t1 * B_t, starts + t1, t1 < stop, exists, in_state, HAS_STARTS
        )
        decay2, h3 = _advance(
            h2, rate, x + t2 * x_t, dt + t2 * dt_t, B + t2 * B_t, starts + t2, t2 < stop, exists, in_state, HAS_STARTS
        )
        decay3, h4 = _advance(
            h3, rate, x + t3 * x_t, dt + t3 * dt_t, B + t3 * B_t, starts + t3, t3 < stop, exists, in_state, HAS_STARTS
        )
        dh, da = _retreat(
            dh, da, decay3, h3, h4, rate, x + t3 * x_t, dt + t3 * dt_t, B + t3 * B_t, C + t3 * C_t, dy + t3 * dy_t,
            dx + t3 * dim, ddt + t3 * dim, dB + t3 * row, dC + t3 * row, t3 < stop, exists, in_state,
        )  # fmt: skip
        dh, da = _retreat(
            dh, da, decay2, h2, h3, rate, x + t2 * x_t, dt + t2 * dt_t, B + t2 * B_t, C + t2 * C_t, dy + t2 * dy_t,
            dx + t2 * dim, ddt + t2 * dim, dB + t2 * row, dC + t2 * row, t2 < stop, exists, in_state,
        )  # fmt: skip
        dh, da = _retreat(
            dh, da, decay1, h1, h2, rate, x + t1 * x_t, dt + t1 * dt_t, B + t1 * B_t, C + t1 * C_t, dy + t1 * dy_t,
            dx + t1 * dim, ddt + t1 * dim, dB + t1 * row, dC + t1 * row, t1 < stop, exists, in_state,
        )  # fmt: skip
        dh, da = _retreat(
            dh, da, decay0, h0, h1, rate, x + t0 * x_t, dt + t0 * dt_t, B + t0 * B_t, C + t0 * C_t, dy + t0 * dy_t,
            dx + t0 * dim, ddt + t0 * dim, dB + t0 * row, dC + t0 * row, True, exists, in_state,
        )  # fmt: skip
    tl.store(dA + here, da, mask=in_tile)
