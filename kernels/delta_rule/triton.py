r"""The delta rule in Triton: linear attention over corrections u, which a triangular system of each chunk yields.

With S the state before a chunk, :math:`\gamma_i` the decay from before the chunk, :math:`\Gamma_{ij}` from after step j
and :math:`\epsilon_j` from there to the end, and :math:`L_{ij} = \Gamma_{ij} k_i \cdot k_j` for j < i, the errors e of
the state's predictions and the corrections u = beta e of a chunk are

.. math::
    E = (I + L \, \mathrm{diag}(\beta))^{-1} (V - \gamma K S), \quad
    S \leftarrow \gamma_{last} S + (\epsilon K)^\top U, \quad O = P U + \mathrm{scale} \, \gamma Q S

with P the scores of linear attention; where each key channel decays by itself, the decays are factors of the channels
of K and Q, and those of L lie between its two. Backwards, with R the gradient of the state behind the chunk,

.. math::
    dU = P^\top dO + \epsilon K R, \quad dV = (I + L \, \mathrm{diag}(\beta))^{-\top} \beta \, dU, \quad
    R \leftarrow \gamma_{last} R + \mathrm{scale} (\gamma Q)^\top dO - (\gamma K)^\top dV

with :math:`dP = dO U^\top`, :math:`dL = -dV U^\top` and :math:`d\beta_i = e_i \cdot (dU - L^\top dV)_i`. ``_systems``
inverts the triangles of all chunks at once, ``_corrections`` and ``_correction_gradients`` run the recurrences over
their states, ``_gradients`` makes what is left in all chunks at once.

The inverse, and what makes states or is multiplied by them, is in full precision. But the predictions
:math:`\gamma K S` cancel against what the chunk itself has corrected, and that is all of it where its keys outnumber
their channels. So no chunk is longer than keys have channels, and of fewer channels than a matrix product takes all is
in float64.
"""

# Triton reads constexpr arguments that its annotations do not allow for.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common.chunk_tiles import (
    SCALAR,
    SMALLEST_BLOCK,
    ChunkLaunch,
    block_size,
    gradients_by_halves,
    scalar_gates,
    scores_by_halves,
    segments_around,
    spanned,
    state_tile,
    store,
    tile,
    vector_gates,
)
from zoo.kernels.delta_rule.native import in_width

STATE_TILE = 4096  # elements of a state that a program of the recurrences holds: all key channels of some values
KEY_TILE = 8192  # elements of a chunk's keys that it holds


def forward(q, k, v, beta, log_decay, state, starts, scale, chunk_size) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference, of any floating dtype and strides; computed in the dtype of ``state``."""
    dtype, (q, k, v, beta, log_decay) = v.dtype, in_width(q.shape[-1], q, k, v, beta, log_decay)
    launch = _Launch("forward", q, k, v, beta, log_decay, state, starts, scale, chunk_size)
    corrections, before, final = launch.corrections(k, v, state, launch.systems(k)[1], scaled=True)
    output = launch.combine(q, corrections, launch.scores(q, k), before, reverse=False, dtype=dtype)
    return output, final.to(state.dtype)


def backward(dy, dstate, q, k, v, beta, log_decay, state, starts, scale, chunk_size) -> list[Tensor]:
    """Gradients of q, k, v, beta, log_decay (where there is one) and the initial state; every sum in a fixed order."""
    dy, q, k, v, beta, log_decay = in_width(q.shape[-1], dy, q, k, v, beta, log_decay)
    launch = _Launch("backward", q, k, v, beta, log_decay, state, starts, scale, chunk_size)
    (products, inverse), scores = launch.systems(k), launch.scores(q, k)
    errors, before, _ = launch.corrections(k, v, state, inverse, scaled=False)
    dv, dbeta, after, dinitial = launch.correction_gradients(q, k, dy, dstate, errors, scores, products, inverse)
    dq, dk, ddecay = launch.all_gradients(q, k, dy, dv, errors, scores, products, before, after)
    return [dq, dk, dv, dbeta, *([] if ddecay is None else [ddecay]), dinitial]


class _Launch(ChunkLaunch):
    """The kernels with the arguments that all of them share, those of linear attention among them."""

    operation = "delta_rule"

    def __init__(self, direction, q, k, v, beta, log_decay, state, starts, scale, chunk_size):
        key_dim = q.shape[-1]
        wide = state.double() if key_dim < SMALLEST_BLOCK else state
        longest = min(1 << (key_dim.bit_length() - 1), KEY_TILE // triton.next_power_of_2(key_dim))
        super().__init__(direction, q, k, v, log_decay, wide, starts, scale, min(chunk_size, longest))
        self.beta = (beta, *beta.stride())
        self.all_keys = block_size(self.key_dim, triton.next_power_of_2(self.key_dim))
        self.some_values = block_size(self.value_dim, max(SMALLEST_BLOCK, STATE_TILE // self.all_keys))
        self.columns = triton.cdiv(self.value_dim, self.some_values)

    def systems(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """L and (I + L diag(beta))^-1 of each chunk: (B, H, chunks, steps, steps)."""
        products = k.new_empty(self.batch, self.heads, self.chunks, self.chunk, self.chunk, dtype=self.dtype)
        inverse = torch.empty_like(products)
        self._run(
            _systems, (self.batch * self.heads * self.chunks,), k, *k.stride(), *self.beta, products, inverse,
            self.key_dim, *self.arguments,
            PRECISION=self.exact, LEVELS=self.chunk.bit_length() - 1, BK=self.key_block,
        )  # fmt: skip
        return products, inverse

    def corrections(self, k, v, initial, inverse, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Errors (B, T, H, V), ``scaled`` by beta, the state before each chunk and at the end."""
        initial = initial.to(self.dtype).contiguous()
        result = initial.new_empty(v.shape)
        states = initial.new_empty(self.batch, self.heads, self.chunks, self.key_dim, self.value_dim)
        final = torch.empty_like(initial)
        self._run(
            _corrections, (self.batch * self.heads, self.columns), k, *k.stride(), v, *v.stride(), *self.beta,
            inverse, initial, result, states, final, self.key_dim, self.value_dim, *self.arguments,
            PRECISION=self.exact, SCALED=scaled, BK=self.all_keys, BV=self.some_values,
        )  # fmt: skip
        return result, states, final

    def correction_gradients(self, q, k, dy, dfinal, errors, scores, products, inverse) -> tuple[Tensor, ...]:
        """Gradients of v and beta, of the state after each chunk and of the initial one."""
        dfinal = dfinal.to(self.dtype).contiguous()
        dv = torch.empty_like(errors)
        dbeta = errors.new_empty(self.columns, self.batch, self.length, self.heads)
        states = dfinal.new_empty(self.batch, self.heads, self.chunks, self.key_dim, self.value_dim)
        dinitial = torch.empty_like(dfinal)
        self._run(
            _correction_gradients, (self.batch * self.heads, self.columns), q, *q.stride(), k, *k.stride(),
            dy, *dy.stride(), *self.beta, errors, scores, products, inverse, dfinal, dv, dbeta, states, dinitial,
            self.batch, self.key_dim, self.value_dim, *self.arguments,
            PRECISION=self.exact, BK=self.all_keys, BV=self.some_values,
        )  # fmt: skip
        return dv, dbeta.sum(0), states, dinitial

    def all_gradients(self, q, k, dy, dv, errors, scores, products, before, after):
        """Gradients of q, k and log_decay; a scalar one's has one part for each block of key channels."""
        dq, dk = q.new_empty(q.shape), k.new_empty(k.shape)
        if self.gate == SCALAR:
            ddecay = before.new_empty(self.key_blocks, *self.log_decay.shape)
        else:
            ddecay = None if self.log_decay is None else self.log_decay.new_empty(self.log_decay.shape)
        self._run(
            _gradients, (self.batch * self.heads * self.chunks, self.key_blocks), q, *q.stride(), k, *k.stride(),
            dy, *dy.stride(), *self.beta, dv, errors, scores, products, before, after, dq, dk, ddecay,
            self.batch, self.key_dim, self.value_dim, *self.arguments,
            PRECISION=self.exact, LEVELS=self.chunk.bit_length() - 1, BK=self.key_block, BV=self.value_block,
        )  # fmt: skip
        return dq, dk, ddecay.sum(0) if self.gate == SCALAR and ddecay is not None else ddecay


@triton.jit
def _decays(
    gates, g_b, g_t, g_h, g_d, segments, b, h, chunk, keys, T, K,
    GATE: tl.constexpr, STARTS: tl.constexpr, BT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """From before the chunk to each step and from after it to the end (steps, keys or 1), and over the whole chunk
    (keys or 1, 1); 0 between sequences."""
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    before_end, behind = spanned(steps, False), spanned(steps, True)
    from_start, to_end, across = tl.full((BT, 1), 1.0, DTYPE), tl.full((BT, 1), 1.0, DTYPE), tl.full((1, 1), 1.0, DTYPE)
    if GATE == 1:
        g = scalar_gates(gates + b * g_b + h * g_h, rows, g_t, T, DTYPE)
        from_start = tl.exp(tl.sum(tl.where(before_end, g[None, :], 0.0), 1))[:, None]
        to_end = tl.exp(tl.sum(tl.where(behind, g[None, :], 0.0), 1))[:, None]
        across = tl.exp(tl.sum(g[:, None], 0))[:, None]
    if GATE == 2:
        g = vector_gates(gates + b * g_b + h * g_h, rows, keys, g_t, g_d, T, K, DTYPE)
        from_start = tl.exp(tl.dot(before_end.to(DTYPE), g, input_precision="ieee"))
        to_end = tl.exp(tl.dot(behind.to(DTYPE), g, input_precision="ieee"))
        across = tl.exp(tl.sum(g, 0))[:, None]
    if STARTS:
        segment = tl.load(segments + b * T + rows, mask=rows < T, other=-1)
        before, last = segments_around(segments, b, chunk, T, BT)
        from_start = tl.where((segment == before)[:, None], from_start, 0.0)
        to_end = tl.where((segment == last)[:, None], to_end, 0.0)
        across = tl.where(before == last, across, 0.0)
    return from_start, to_end, across


@triton.jit
def _decays_within(
    gates, g_b, g_t, g_h, segments, b, h, chunk, T,
    GATE: tl.constexpr, STARTS: tl.constexpr, BT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """[i, j]: from after step j to after step i, lower triangular, 0 between sequences; of a vector what is masked."""
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    result = tl.full((BT, BT), 1.0, DTYPE)
    if GATE == 1:
        g = scalar_gates(gates + b * g_b + h * g_h, rows, g_t, T, DTYPE)
        result = tl.exp(tl.cumsum(tl.where(steps[:, None] > steps[None, :], g[:, None], 0.0), 0))
    lower = steps[:, None] >= steps[None, :]
    if STARTS:
        segment = tl.load(segments + b * T + rows, mask=rows < T, other=-1)
        lower = lower & (segment[:, None] == segment[None, :])
    return tl.where(lower, result, 0.0)


@triton.jit
def _systems(
    k, k_b, k_t, k_h, k_d, beta, b_b, b_t, b_h, products, inverse, K,
    gates, g_b, g_t, g_h, g_d, segments, T, H, chunks,
    GATE: tl.constexpr, STARTS: tl.constexpr, LEVELS: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunk, bh = program % chunks, program // chunks
    b, h = bh // H, bh % H
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    L = tl.zeros((BT, BT), DTYPE)
    for first in range(0, K, BK):
        keys = first + tl.arange(0, BK)
        k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
        if GATE == 2:
            g = vector_gates(gates + b * g_b + h * g_h, rows, keys, g_t, g_d, T, K, DTYPE)
            L += scores_by_halves(k_tile, k_tile, g, steps, LEVELS, DTYPE, PRECISION)
        else:
            L += tl.dot(k_tile, tl.trans(k_tile), input_precision=PRECISION)
    L *= _decays_within(gates, g_b, g_t, g_h, segments, b, h, chunk, T, GATE, STARTS, BT, DTYPE)
    L = tl.where(steps[:, None] > steps[None, :], L, 0.0)
    place = program * BT * BT + steps[:, None] * BT + steps[None, :]
    tl.store(products + place, L)
    L *= tl.load(beta + b * b_b + h * b_h + rows * b_t, mask=rows < T, other=0.0).to(DTYPE)[None, :]
    # blocks of one step to the whole chunk: of [[M1, 0], [L21, M2]] the inverse is [[T1, 0], [-T2 L21 T1, T2]]
    result = tl.where(steps[:, None] == steps[None, :], tl.full((BT, BT), 1.0, DTYPE), 0.0)
    for level in tl.static_range(LEVELS):
        row, column = steps[:, None] >> level, steps[None, :] >> level
        between = tl.where(((row >> 1) == (column >> 1)) & (row != column), L, 0.0)
        result -= tl.dot(result, tl.dot(between, result, input_precision=PRECISION), input_precision=PRECISION)
    tl.store(inverse + place, result)


@triton.jit
def _corrections(
    k, k_b, k_t, k_h, k_d, v, v_b, v_t, v_h, v_d, beta, b_b, b_t, b_h, inverse, initial, result, states, final, K, V,
    gates, g_b, g_t, g_h, g_d, segments, T, H, chunks,
    GATE: tl.constexpr, STARTS: tl.constexpr, SCALED: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    steps, keys, values = tl.arange(0, BT), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    mask = (keys < K)[:, None] & (values < V)[None, :]
    state_place = keys[:, None] * V + values[None, :]
    state = tl.load(initial + bh * K * V + state_place, mask=mask, other=0.0).to(DTYPE)
    for index in range(chunks):
        chunk = tl.cast(index, tl.int64)
        tl.store(states + (bh * chunks + chunk) * K * V + state_place, state, mask=mask)
        rows = chunk * BT + steps
        from_start, to_end, across = _decays(
            gates, g_b, g_t, g_h, g_d, segments, b, h, chunk, keys, T, K, GATE, STARTS, BT, DTYPE
        )
        k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
        errors = tile(v + b * v_b + h * v_h, rows, values, v_t, v_d, T, V, DTYPE)
        errors -= tl.dot(k_tile * from_start, state, input_precision=PRECISION)
        T_tile = tl.load(inverse + (bh * chunks + chunk) * BT * BT + steps[:, None] * BT + steps[None, :])
        errors = tl.dot(T_tile, errors, input_precision=PRECISION)
        scaled = errors * tl.load(beta + b * b_b + h * b_h + rows * b_t, mask=rows < T, other=0.0).to(DTYPE)[:, None]
        place = ((b * T + rows[:, None]) * H + h) * V + values[None, :]
        exists = (rows < T)[:, None] & (values < V)[None, :]
        tl.store(result + place, scaled if SCALED else errors, mask=exists)
        state *= across
        state += tl.dot(tl.trans(k_tile * to_end), scaled, input_precision=PRECISION)
    tl.store(final + bh * K * V + state_place, state, mask=mask)


@triton.jit
def _correction_gradients(
    q, q_b, q_t, q_h, q_d, k, k_b, k_t, k_h, k_d, dy, dy_b, dy_t, dy_h, dy_d, beta, b_b, b_t, b_h,
    errors, scores, products, inverse, dfinal, dv, dbeta, states, dinitial, B, K, V,
    gates, g_b, g_t, g_h, g_d, segments, T, H, chunks,
    GATE: tl.constexpr, STARTS: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    column = tl.program_id(1)
    steps, keys, values = tl.arange(0, BT), tl.arange(0, BK), column * BV + tl.arange(0, BV)
    mask = (keys < K)[:, None] & (values < V)[None, :]
    state_place = keys[:, None] * V + values[None, :]
    dstate = tl.load(dfinal + bh * K * V + state_place, mask=mask, other=0.0).to(DTYPE)
    for index in range(chunks):
        chunk = chunks - 1 - tl.cast(index, tl.int64)
        tl.store(states + (bh * chunks + chunk) * K * V + state_place, dstate, mask=mask)
        rows = chunk * BT + steps
        from_start, to_end, across = _decays(
            gates, g_b, g_t, g_h, g_d, segments, b, h, chunk, keys, T, K, GATE, STARTS, BT, DTYPE
        )
        k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
        dy_tile = tile(dy + b * dy_b + h * dy_h, rows, values, dy_t, dy_d, T, V, DTYPE)
        square = (bh * chunks + chunk) * BT * BT + steps[:, None] * BT + steps[None, :]
        du = tl.dot(tl.trans(tl.load(scores + square)), dy_tile, input_precision=PRECISION)
        du += tl.dot(k_tile * to_end, dstate, input_precision=PRECISION)
        scaled = du * tl.load(beta + b * b_b + h * b_h + rows * b_t, mask=rows < T, other=0.0).to(DTYPE)[:, None]
        dv_tile = tl.dot(tl.trans(tl.load(inverse + square)), scaled, input_precision=PRECISION)
        du -= tl.dot(tl.trans(tl.load(products + square)), dv_tile, input_precision=PRECISION)
        place = ((b * T + rows[:, None]) * H + h) * V + values[None, :]
        exists = (rows < T)[:, None] & (values < V)[None, :]
        tl.store(dv + place, dv_tile, mask=exists)
        error = tl.load(errors + place, mask=exists, other=0.0)
        tl.store(dbeta + ((column.to(tl.int64) * B + b) * T + rows) * H + h, tl.sum(error * du, 1), mask=rows < T)
        q_tile = tile(q + b * q_b + h * q_h, rows, keys, q_t, q_d, T, K, DTYPE) * SCALE
        dstate *= across
        dstate += tl.dot(tl.trans(q_tile * from_start), dy_tile, input_precision=PRECISION)
        dstate -= tl.dot(tl.trans(k_tile * from_start), dv_tile, input_precision=PRECISION)
    tl.store(dinitial + bh * K * V + state_place, dstate, mask=mask)


@triton.jit
def _gradients(
    q, q_b, q_t, q_h, q_d, k, k_b, k_t, k_h, k_d, dy, dy_b, dy_t, dy_h, dy_d, beta, b_b, b_t, b_h,
    dv, errors, scores, products, before, after, dq, dk, ddecay, B, K, V,
    gates, g_b, g_t, g_h, g_d, segments, T, H, chunks,
    GATE: tl.constexpr, STARTS: tl.constexpr, LEVELS: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunk, bh = program % chunks, program // chunks
    b, h = bh // H, bh % H
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    block = tl.program_id(1).to(tl.int64)
    keys = block * BK + tl.arange(0, BK)
    q_tile = tile(q + b * q_b + h * q_h, rows, keys, q_t, q_d, T, K, DTYPE)
    k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
    step = tl.load(beta + b * b_b + h * b_h + rows * b_t, mask=rows < T, other=0.0).to(DTYPE)

    dP, dL = tl.zeros((BT, BT), DTYPE), tl.zeros((BT, BT), DTYPE)
    dq_tile, dk_read, dk_written = tl.zeros((BT, BK), DTYPE), tl.zeros((BT, BK), DTYPE), tl.zeros((BT, BK), DTYPE)
    dacross = tl.zeros((BK,), DTYPE)
    for first in range(0, V, BV):
        values = first + tl.arange(0, BV)
        u_tile = tile(errors + (b * T * H + h) * V, rows, values, H * V, 1, T, V, DTYPE) * step[:, None]
        dv_tile = tile(dv + (b * T * H + h) * V, rows, values, H * V, 1, T, V, DTYPE)
        dy_tile = tile(dy + b * dy_b + h * dy_h, rows, values, dy_t, dy_d, T, V, DTYPE)
        before_tile = state_tile(before + program * K * V, keys, values, K, V)
        after_tile = state_tile(after + program * K * V, keys, values, K, V)
        dP += tl.dot(dy_tile, tl.trans(u_tile), input_precision=PRECISION)
        dL -= tl.dot(dv_tile, tl.trans(u_tile), input_precision=PRECISION)
        dq_tile += tl.dot(dy_tile, tl.trans(before_tile), input_precision=PRECISION)
        dk_read -= tl.dot(dv_tile, tl.trans(before_tile), input_precision=PRECISION)
        dk_written += tl.dot(u_tile, tl.trans(after_tile), input_precision=PRECISION)
        dacross += tl.sum(before_tile * after_tile, 1)

    from_start, to_end, across = _decays(
        gates, g_b, g_t, g_h, g_d, segments, b, h, chunk, keys, T, K, GATE, STARTS, BT, DTYPE
    )
    dq_tile *= SCALE * from_start
    dk_read *= from_start
    dk_written *= to_end
    if GATE == 1:
        square = program * BT * BT + steps[:, None] * BT + steps[None, :]
        pairs = tl.load(scores + square) * dP + tl.load(products + square) * dL
        pairs = tl.where((block == 0) & (steps[:, None] > steps[None, :]), pairs, 0.0)
        pairs = tl.cumsum(pairs, 0, reverse=True)
        dg = tl.sum(tl.where(steps[:, None] > steps[None, :], pairs, 0.0), 1)
        read = tl.sum(q_tile * dq_tile + k_tile * dk_read, 1)
        dg += tl.sum(tl.where(spanned(steps, False), read[:, None], 0.0), 0)
        dg += tl.sum(tl.where(spanned(steps, True), tl.sum(k_tile * dk_written, 1)[:, None], 0.0), 0)
        dg += tl.sum(across, 0) * tl.sum(dacross, 0)
        tl.store(ddecay + ((block * B + b) * T + rows) * H + h, dg, mask=rows < T)

    within = _decays_within(gates, g_b, g_t, g_h, segments, b, h, chunk, T, GATE, STARTS, BT, DTYPE)
    dP *= SCALE * within
    dL = tl.where(steps[:, None] > steps[None, :], dL * within, 0.0)
    place = ((b * T + rows[:, None]) * H + h) * K + keys[None, :]
    mask = (rows < T)[:, None] & (keys < K)[None, :]
    dk_tile = dk_read + dk_written
    if GATE == 2:
        g = vector_gates(gates + b * g_b + h * g_h, rows, keys, g_t, g_d, T, K, DTYPE)
        read = q_tile * dq_tile + k_tile * dk_read
        dg = tl.dot(tl.trans(spanned(steps, False).to(DTYPE)), read, input_precision="ieee")
        dg += tl.dot(tl.trans(spanned(steps, True).to(DTYPE)), k_tile * dk_written, input_precision="ieee")
        dg += tl.trans(across) * dacross[None, :]
        dq_scores, dk_scores, dg_scores = gradients_by_halves(dP, q_tile, k_tile, g, steps, LEVELS, DTYPE, PRECISION)
        dk_late, dk_early, dg_products = gradients_by_halves(dL, k_tile, k_tile, g, steps, LEVELS, DTYPE, PRECISION)
        dq_tile += dq_scores
        dk_tile += dk_scores + dk_late + dk_early
        store(ddecay + place, dg + dg_scores + dg_products, mask=mask)
    else:
        dq_tile += tl.dot(dP, k_tile, input_precision=PRECISION)
        dk_tile += tl.dot(tl.trans(dP), q_tile, input_precision=PRECISION)
        dk_tile += tl.dot(dL + tl.trans(dL), k_tile, input_precision=PRECISION)
    store(dq + place, dq_tile, mask=mask)
    store(dk + place, dk_tile, mask=mask)
