"""Linear attention in Triton: the chunked form, all chunks at once but for the recurrence over their boundary states.

``_states`` runs that recurrence, forwards for the state before each chunk and backwards for the gradient of the state
after it. The attention matrix of each chunk and the output from both (and, transposed, the gradient of v) come from
``ChunkLaunch``, ``_gradients`` makes those of q, k and the decays. Nothing of the forward is kept for the backward but
its inputs.

The gradient of a log decay sums the products of every pair of steps (and of states) that it lies between, all of them
terms of the result: no difference of large numbers, so a decay of exp(-50) has the gradient of exp(-50).
"""

# Triton reads constexpr arguments and slices that its annotations do not allow for.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common.chunk_tiles import (
    SCALAR,
    ChunkLaunch,
    gradients_by_halves,
    scalar_gates,
    segments_around,
    spanned,
    state_tile,
    store,
    tile,
    vector_gates,
)


def forward(q, k, v, log_decay, state, starts, scale, chunk_size) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference, of any floating dtype and strides; computed in the dtype of ``state``."""
    launch = _Launch("forward", q, k, v, log_decay, state, starts, scale, chunk_size)
    before, final = launch.states(k, v, state, reverse=False)
    return launch.combine(q, v, launch.scores(q, k), before, reverse=False), final


def backward(dy, dstate, q, k, v, log_decay, state, starts, scale, chunk_size) -> list[Tensor]:
    """Gradients of q, k, v, log_decay (where there is one) and the initial state; every sum in a fixed order."""
    launch = _Launch("backward", q, k, v, log_decay, state, starts, scale, chunk_size)
    before, _ = launch.states(k, v, state, reverse=False)
    after, dinitial = launch.states(q, dy, dstate, reverse=True)
    scores = launch.scores(q, k)
    dv = launch.combine(k, dy, scores, after, reverse=True)
    dq, dk, ddecay = launch.gradients(q, k, v, dy, scores, before, after)
    return [dq, dk, dv, *([] if ddecay is None else [ddecay]), dinitial]


class _Launch(ChunkLaunch):
    """All kernels of the operation, those that it shares among them."""

    operation = "linear_attention"

    def states(self, x: Tensor, y: Tensor, initial: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """The state before each chunk (its gradient after it, when ``reverse``) and at the end: sums of x y^T."""
        initial = initial.contiguous()
        states = initial.new_empty(self.batch, self.heads, self.chunks, self.key_dim, self.value_dim)
        final = initial.new_empty(initial.shape)
        self._run(
            _states, (self.batch * self.heads, self.key_blocks, self.value_blocks), x, *x.stride(), y, *y.stride(),
            initial, states, final, self.key_dim, self.value_dim, *self.arguments,
            PRECISION=self.exact, REVERSE=reverse, BK=self.key_block, BV=self.value_block,
        )  # fmt: skip
        return states, final

    def gradients(self, q, k, v, dy, scores, before, after) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of q, k and log_decay; a scalar gate's has one part for each block of key channels."""
        dq, dk = q.new_empty(q.shape), k.new_empty(k.shape)
        if self.gate == SCALAR:
            ddecay = before.new_empty(self.key_blocks, *self.log_decay.shape)
        else:
            ddecay = None if self.log_decay is None else self.log_decay.new_empty(self.log_decay.shape)
        self._run(
            _gradients, (self.batch * self.heads * self.chunks, self.key_blocks),
            q, *q.stride(), k, *k.stride(), v, *v.stride(), dy, *dy.stride(), scores, before, after, dq, dk, ddecay,
            self.batch, self.key_dim, self.value_dim, *self.arguments,
            PRECISION=self.precision, LEVELS=self.chunk.bit_length() - 1, BK=self.key_block, BV=self.value_block,
        )  # fmt: skip
        return dq, dk, ddecay.sum(0) if self.gate == SCALAR and ddecay is not None else ddecay


@triton.jit
def _states(
    x, x_b, x_t, x_h, x_d, y, y_b, y_t, y_h, y_d, initial, states, final, K, V,
    gates, g_b, g_t, g_h, g_d, segments, T, H, chunks,
    GATE: tl.constexpr, STARTS: tl.constexpr, REVERSE: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    steps = tl.arange(0, BT)
    keys, values = tl.program_id(1) * BK + tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    mask = (keys < K)[:, None] & (values < V)[None, :]
    place = keys[:, None] * V + values[None, :]
    state = tl.load(initial + bh * K * V + place, mask=mask, other=0.0).to(DTYPE)
    for index in range(chunks):
        chunk = tl.cast(index, tl.int64)
        if REVERSE:
            chunk = chunks - 1 - chunk
        tl.store(states + (bh * chunks + chunk) * K * V + place, state, mask=mask)
        rows = chunk * BT + steps
        x_tile = tile(x + b * x_b + h * x_h, rows, keys, x_t, x_d, T, K, DTYPE)
        y_tile = tile(y + b * y_b + h * y_h, rows, values, y_t, y_d, T, V, DTYPE)
        if REVERSE:
            x_tile *= SCALE
        spans = spanned(steps, not REVERSE)
        if GATE == 1:
            g = scalar_gates(gates + b * g_b + h * g_h, rows, g_t, T, DTYPE)
            x_tile *= tl.exp(tl.sum(tl.where(spans, g[None, :], 0.0), 1))[:, None]
            state *= tl.exp(tl.sum(g, 0))
        if GATE == 2:
            g = vector_gates(gates + b * g_b + h * g_h, rows, keys, g_t, g_d, T, K, DTYPE)
            x_tile *= tl.exp(tl.dot(spans.to(DTYPE), g, input_precision="ieee"))
            state *= tl.exp(tl.sum(g, 0))[:, None]
        if STARTS:
            segment = tl.load(segments + b * T + rows, mask=rows < T, other=-1)
            before, last = segments_around(segments, b, chunk, T, BT)
            if REVERSE:
                x_tile = tl.where((segment == before)[:, None], x_tile, 0.0)
            else:
                x_tile = tl.where((segment == last)[:, None], x_tile, 0.0)
            state = tl.where(before == last, state, 0.0)
        state += tl.dot(tl.trans(x_tile), y_tile, input_precision=PRECISION)
    tl.store(final + bh * K * V + place, state, mask=mask)


@triton.jit
def _gradients(
    q, q_b, q_t, q_h, q_d, k, k_b, k_t, k_h, k_d, v, v_b, v_t, v_h, v_d, dy, dy_b, dy_t, dy_h, dy_d,
    scores, before_states, after_states, dq, dk, ddecay, B, K, V,
    gates, g_b, g_t, g_h, g_d, segments, T, H, chunks,
    GATE: tl.constexpr, STARTS: tl.constexpr, LEVELS: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunk, bh = program % chunks, program // chunks
    b, h = bh // H, bh % H
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    block = tl.program_id(1)
    keys = block * BK + tl.arange(0, BK)
    q_tile = tile(q + b * q_b + h * q_h, rows, keys, q_t, q_d, T, K, DTYPE)
    k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)

    dscores = tl.zeros((BT, BT), DTYPE)
    dq_tile, dk_tile = tl.zeros((BT, BK), DTYPE), tl.zeros((BT, BK), DTYPE)
    dacross = tl.zeros((BK,), DTYPE)
    for first in range(0, V, BV):
        values = first + tl.arange(0, BV)
        v_tile = tile(v + b * v_b + h * v_h, rows, values, v_t, v_d, T, V, DTYPE)
        dy_tile = tile(dy + b * dy_b + h * dy_h, rows, values, dy_t, dy_d, T, V, DTYPE)
        before_tile = state_tile(before_states + program * K * V, keys, values, K, V)
        after_tile = state_tile(after_states + program * K * V, keys, values, K, V)
        dscores += tl.dot(dy_tile, tl.trans(v_tile), input_precision=PRECISION)
        dq_tile += tl.dot(dy_tile, tl.trans(before_tile), input_precision=PRECISION)
        dk_tile += tl.dot(v_tile, tl.trans(after_tile), input_precision=PRECISION)
        dacross += tl.sum(before_tile * after_tile, 1)
    dq_tile *= SCALE
    lower = steps[:, None] >= steps[None, :]
    if STARTS:
        segment = tl.load(segments + b * T + rows, mask=rows < T, other=-1)
        before, last = segments_around(segments, b, chunk, T, BT)
        dq_tile = tl.where((segment == before)[:, None], dq_tile, 0.0)
        dk_tile = tl.where((segment == last)[:, None], dk_tile, 0.0)
        dacross = tl.where(before == last, dacross, 0.0)
        lower = lower & (segment[:, None] == segment[None, :])
    dscores = tl.where(lower, dscores, 0.0)

    from_start, to_end = spanned(steps, False), spanned(steps, True)
    if GATE == 1:
        g = scalar_gates(gates + b * g_b + h * g_h, rows, g_t, T, DTYPE)
        dq_tile *= tl.exp(tl.sum(tl.where(from_start, g[None, :], 0.0), 1))[:, None]
        dk_tile *= tl.exp(tl.sum(tl.where(to_end, g[None, :], 0.0), 1))[:, None]
        within = tl.load(scores + program * BT * BT + steps[:, None] * BT + steps[None, :])
        pairs = tl.where((block == 0) & (steps[:, None] > steps[None, :]), within * dscores, 0.0)
        pairs = tl.cumsum(pairs, 0, reverse=True)
        dg = tl.sum(tl.where(steps[:, None] > steps[None, :], pairs, 0.0), 1)
        dg += tl.sum(tl.where(from_start, tl.sum(q_tile * dq_tile, 1)[:, None], 0.0), 0)
        dg += tl.sum(tl.where(to_end, tl.sum(k_tile * dk_tile, 1)[:, None], 0.0), 0)
        dg += tl.exp(tl.sum(g, 0)) * tl.sum(dacross, 0)
        place = ((block * B + b) * T + rows) * H + h
        store(ddecay + place, dg, mask=rows < T)
        dscores *= tl.exp(tl.cumsum(tl.where(steps[:, None] > steps[None, :], g[:, None], 0.0), 0))

    dscores *= SCALE
    place = ((b * T + rows[:, None]) * H + h) * K + keys[None, :]
    mask = (rows < T)[:, None] & (keys < K)[None, :]
    if GATE == 2:
        g = vector_gates(gates + b * g_b + h * g_h, rows, keys, g_t, g_d, T, K, DTYPE)
        dq_tile *= tl.exp(tl.dot(from_start.to(DTYPE), g, input_precision="ieee"))
        dk_tile *= tl.exp(tl.dot(to_end.to(DTYPE), g, input_precision="ieee"))
        dg = tl.dot(tl.trans(from_start.to(DTYPE)), q_tile * dq_tile, input_precision="ieee")
        dg += tl.dot(tl.trans(to_end.to(DTYPE)), k_tile * dk_tile, input_precision="ieee")
        dg += (tl.exp(tl.sum(g, 0)) * dacross)[None, :]
        dq_within, dk_within, dg_within = gradients_by_halves(
            dscores, q_tile, k_tile, g, steps, LEVELS, DTYPE, PRECISION
        )
        dq_tile += dq_within
        dk_tile += dk_within
        store(ddecay + place, dg + dg_within, mask=mask)
    else:
        dq_tile += tl.dot(dscores, k_tile, input_precision=PRECISION)
        dk_tile += tl.dot(tl.trans(dscores), q_tile, input_precision=PRECISION)
    store(dq + place, dq_tile, mask=mask)
    store(dk + place, dk_tile, mask=mask)
