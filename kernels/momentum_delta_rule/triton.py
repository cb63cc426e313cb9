r"""The delta rule with momentum in Triton, as the delta rule's: a triangular system a chunk, a recurrence over chunks.

With Z the state M above the momentum S before a chunk, the ``shares`` A (taken), B (before), a chunk's errors e and
what it writes, w = r e, are

.. math::
    E = (I + L \, \mathrm{diag}(r))^{-1} (V - [B_M K, B_S K] Z), \quad L = B \circ K K^\top, \quad
    O = (A \circ Q K^\top) W + [A_M Q, A_S Q] Z

Backwards, with R the gradient of Z behind the chunk and C what the momentum keeps of what is written,

.. math::
    dW = (A \circ Q K^\top)^\top dO + [A K, C K] R, \quad
    dV = (I + L \, \mathrm{diag}(r))^{-\top} r \, dW, \quad dr_i = e_i \cdot (dW - L^\top dV)_i

``_systems`` makes the products and inverses of all chunks at once, ``_corrections`` and ``_correction_gradients`` run
the recurrences, ``_outputs`` and ``_gradients`` make what is left in all chunks at once. The shares are torch's, and so
is what their gradients, which are products, mean for the gates.

As in the delta rule no chunk is longer than keys have channels, and of fewer channels than a matrix product takes all
is in float64.
"""

# Triton reads constexpr arguments that its annotations do not allow for.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients
from zoo.kernels.common.chunk_tiles import SMALLEST_BLOCK, ChunkLaunch, block_size, state_tile, store, tile
from zoo.kernels.delta_rule.native import in_width
from zoo.kernels.momentum_delta_rule.shares import Shares, shares_of

STATES_TILE = 4096  # elements of M and S that a program of the recurrences holds: all key channels of some values
KEY_TILE = 8192  # elements of a chunk's keys that it holds


def forward(q, k, v, rate, log_decay, log_momentum, state, momentum, starts, scale, chunk_size) -> tuple[Tensor, ...]:
    """Same arguments as the reference, of any floating dtype and strides; computed in the dtype of ``state``."""
    dtype, (q, k, v, rate) = v.dtype, in_width(q.shape[-1], q, k, v, rate)
    launch = _Launch("forward", q, k, v, rate, state, scale, chunk_size)
    shares = launch.shares(log_decay, log_momentum, starts)
    from_q, _, inverse = launch.systems(q, k, shares)
    errors, before, final = launch.corrections(k, v, (state, momentum), inverse, shares)
    output = launch.outputs(q, errors, from_q, before, shares, dtype)
    return output, *(t.to(state.dtype) for t in final)


def backward(
    dy, dstate, dmomentum, q, k, v, rate, log_decay, log_momentum, state, momentum, starts, scale, chunk_size
) -> list[Tensor]:
    """Gradients of q, k, v, rate, the gates and both initial states; every sum in a fixed order."""
    dy, q, k, v, rate = in_width(q.shape[-1], dy, q, k, v, rate)
    launch = _Launch("backward", q, k, v, rate, state, scale, chunk_size)
    shares = launch.shares(log_decay, log_momentum, starts)
    products = launch.systems(q, k, shares)
    errors, before, _ = launch.corrections(k, v, (state, momentum), products[2], shares)
    dv, drate, after, initial = launch.correction_gradients(q, k, dy, (dstate, dmomentum), errors, products, shares)
    dq, dk, dshares = launch.all_gradients(q, k, dy, dv, errors, products, before, after, shares)
    gates = recomputed_gradients(lambda g, m: launch.shares(g, m, starts), (log_decay, log_momentum), dshares)
    return [dq, dk, dv, drate, *gates, *initial]


class _Launch(ChunkLaunch):
    """The kernels with the arguments that all of them share; states and shares are contiguous, in chunks."""

    operation = "momentum_delta_rule"

    def __init__(self, direction, q, k, v, rate, state, scale, chunk_size):
        key_dim = q.shape[-1]
        wide = state.double() if key_dim < SMALLEST_BLOCK else state
        longest = min(1 << (key_dim.bit_length() - 1), KEY_TILE // triton.next_power_of_2(key_dim))
        super().__init__(direction, q, k, v, None, wide, None, scale, min(chunk_size, longest))
        self.rate = (rate, *rate.stride())
        self.arguments = (self.length, self.heads, self.chunks, self.key_dim, self.value_dim)
        del self.options["GATE"], self.options["STARTS"]
        self.options["PRECISION"] = self.exact
        self.all_keys = block_size(self.key_dim, triton.next_power_of_2(self.key_dim))
        self.some_values = block_size(self.value_dim, max(SMALLEST_BLOCK, STATES_TILE // (2 * self.all_keys)))
        self.columns = triton.cdiv(self.value_dim, self.some_values)
        self.grid = (self.batch * self.chunks * self.heads,)

    def shares(self, log_decay: Tensor, log_momentum: Tensor, starts: Tensor | None) -> Shares:
        """Made in float64: they are sums over many steps, and few."""
        shares = shares_of(log_decay.double(), log_momentum.double(), starts, self.chunk)
        return Shares(*(share.to(self.dtype).contiguous() for share in shares))

    def systems(self, q: Tensor, k: Tensor, shares: Shares) -> tuple[Tensor, Tensor, Tensor]:
        """q k^T, k k^T and (I + L diag(r))^-1 of each chunk: (B, chunks, H, steps, steps)."""
        found = tuple(torch.empty_like(shares.taken) for _ in range(3))
        self._run(
            _systems, self.grid, q, *q.stride(), k, *k.stride(), *self.rate, shares.before, *found, *self.arguments,
            LEVELS=self.chunk.bit_length() - 1, BK=self.key_block,
        )  # fmt: skip
        return found  # type: ignore[return-value]

    def corrections(self, k, v, initial, inverse, shares: Shares) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Errors (B, T, H, V), M and S before each chunk (2, B, chunks, H, K, V), and both at the end."""
        initial = [t.to(self.dtype).contiguous() for t in initial]
        errors, states = initial[0].new_empty(v.shape), self._states(initial[0])
        final = tuple(map(torch.empty_like, initial))
        self._run(
            _corrections, (self.batch * self.heads, self.columns), k, *k.stride(), v, *v.stride(), *self.rate, inverse,
            shares.error, shares.written, shares.across, *initial, errors, *states, *final, *self.arguments,
            BK=self.all_keys, BV=self.some_values,
        )  # fmt: skip
        return errors, states, final

    def outputs(self, q, errors, from_q, states, shares: Shares, dtype: torch.dtype) -> Tensor:
        """(B, T, H, V) of ``dtype``."""
        result = errors.new_empty(errors.shape, dtype=dtype)
        self._run(
            _outputs, (*self.grid, self.value_blocks), q, *q.stride(), *self.rate, errors, from_q, shares.taken,
            shares.read, *states, result, *self.arguments, BK=self.key_block, BV=self.value_block,
        )  # fmt: skip
        return result

    def correction_gradients(self, q, k, dy, arriving, errors, products, shares: Shares) -> tuple:
        """Gradients of v and the rate, of M and S after each chunk and of the initial ones."""
        arriving = [t.to(self.dtype).contiguous() for t in arriving]
        dv, states = torch.empty_like(errors), self._states(arriving[0])
        drate = errors.new_empty(self.columns, self.batch, self.length, self.heads)
        initial = tuple(map(torch.empty_like, arriving))
        self._run(
            _correction_gradients, (self.batch * self.heads, self.columns), q, *q.stride(), k, *k.stride(),
            dy, *dy.stride(), *self.rate, errors, *products, shares.taken, shares.before, shares.read, shares.error,
            shares.written, shares.across, *arriving, dv, drate, *states, *initial, self.batch, *self.arguments,
            BK=self.all_keys, BV=self.some_values,
        )  # fmt: skip
        return dv, drate.sum(0), states, initial

    def all_gradients(self, q, k, dy, dv, errors, products, before, after, shares: Shares) -> tuple:
        """Gradients of q, k and the shares, whose parts of each block of key channels are summed here."""
        dq, dk = q.new_empty(q.shape), k.new_empty(k.shape)
        pairs = [torch.empty_like(share) for share in shares[:2]]
        parts = [share.new_empty(self.key_blocks, *share.shape) for share in shares[2:]]
        self._run(
            _gradients, (*self.grid, self.key_blocks), q, *q.stride(), k, *k.stride(), dy, *dy.stride(), *self.rate,
            dv, errors, *products[:2], *shares[:5], *before, *after, dq, dk, *pairs, *parts, *self.arguments,
            BK=self.key_block, BV=self.value_block,
        )  # fmt: skip
        return dq, dk, (*pairs, *(part.sum(0) for part in parts))

    def _states(self, like: Tensor) -> Tensor:
        return like.new_empty(2, self.batch, self.chunks, self.heads, self.key_dim, self.value_dim)


@triton.jit
def _square(pointer, program, steps, BT: tl.constexpr):
    """Pointers to the (steps, steps) of a chunk."""
    return pointer + program * BT * BT + steps[:, None] * BT + steps[None, :]


@triton.jit
def _pair(pointer, program, steps, BT: tl.constexpr):
    """The shares of M and S of a chunk's steps, (steps, 1) each."""
    place = pointer + (program * BT + steps) * 2
    return tl.load(place)[:, None], tl.load(place + 1)[:, None]


@triton.jit
def _across(pointer, program):
    """The shares over a whole chunk: of M in M, of S in M, of S in S."""
    place = pointer + program * 3
    return tl.load(place), tl.load(place + 1), tl.load(place + 2)


@triton.jit
def _rates(rate, r_b, r_t, r_h, b, h, rows, T, DTYPE: tl.constexpr):
    return tl.load(rate + b * r_b + h * r_h + rows * r_t, mask=rows < T, other=0.0).to(DTYPE)


@triton.jit
def _systems(
    q, q_b, q_t, q_h, q_d, k, k_b, k_t, k_h, k_d, rate, r_b, r_t, r_h, before, from_q, from_k, inverse,
    T, H, chunks, K, V,
    LEVELS: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    h, chunk, b = program % H, program // H % chunks, program // H // chunks
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    QK, KK = tl.zeros((BT, BT), DTYPE), tl.zeros((BT, BT), DTYPE)
    for first in range(0, K, BK):
        keys = first + tl.arange(0, BK)
        q_tile = tile(q + b * q_b + h * q_h, rows, keys, q_t, q_d, T, K, DTYPE)
        k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
        QK += tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        KK += tl.dot(k_tile, tl.trans(k_tile), input_precision=PRECISION)
    tl.store(_square(from_q, program, steps, BT), QK)
    tl.store(_square(from_k, program, steps, BT), KK)
    L = KK * tl.load(_square(before, program, steps, BT)) * _rates(rate, r_b, r_t, r_h, b, h, rows, T, DTYPE)[None, :]
    # blocks of one step to the whole chunk: of [[M1, 0], [L21, M2]] the inverse is [[T1, 0], [-T2 L21 T1, T2]]
    result = tl.where(steps[:, None] == steps[None, :], tl.full((BT, BT), 1.0, DTYPE), 0.0)
    for level in tl.static_range(LEVELS):
        row, column = steps[:, None] >> level, steps[None, :] >> level
        between = tl.where(((row >> 1) == (column >> 1)) & (row != column), L, 0.0)
        result -= tl.dot(result, tl.dot(between, result, input_precision=PRECISION), input_precision=PRECISION)
    tl.store(_square(inverse, program, steps, BT), result)


@triton.jit
def _corrections(
    k, k_b, k_t, k_h, k_d, v, v_b, v_t, v_h, v_d, rate, r_b, r_t, r_h, inverse, error, written, across,
    state, momentum, errors, states, momenta, last_state, last_momentum, T, H, chunks, K, V,
    BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    steps, keys, values = tl.arange(0, BT), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    mask = (keys < K)[:, None] & (values < V)[None, :]
    place = keys[:, None] * V + values[None, :]
    M = tl.load(state + bh * K * V + place, mask=mask, other=0.0)
    S = tl.load(momentum + bh * K * V + place, mask=mask, other=0.0)
    for index in range(chunks):
        chunk = tl.cast(index, tl.int64)
        program = (b * chunks + chunk) * H + h
        tl.store(states + program * K * V + place, M, mask=mask)
        tl.store(momenta + program * K * V + place, S, mask=mask)
        rows = chunk * BT + steps
        k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
        of_M, of_S = _pair(error, program, steps, BT)
        e = tile(v + b * v_b + h * v_h, rows, values, v_t, v_d, T, V, DTYPE)
        e -= tl.dot(k_tile * of_M, M, input_precision=PRECISION)
        e -= tl.dot(k_tile * of_S, S, input_precision=PRECISION)
        e = tl.dot(tl.load(_square(inverse, program, steps, BT)), e, input_precision=PRECISION)
        exists = (rows < T)[:, None] & (values < V)[None, :]
        tl.store(errors + ((b * T + rows[:, None]) * H + h) * V + values[None, :], e, mask=exists)
        w = e * _rates(rate, r_b, r_t, r_h, b, h, rows, T, DTYPE)[:, None]
        of_M, of_S = _pair(written, program, steps, BT)
        kept, moved, carried = _across(across, program)
        M = kept * M + moved * S + tl.dot(tl.trans(k_tile * of_M), w, input_precision=PRECISION)
        S = carried * S + tl.dot(tl.trans(k_tile * of_S), w, input_precision=PRECISION)
    tl.store(last_state + bh * K * V + place, M, mask=mask)
    tl.store(last_momentum + bh * K * V + place, S, mask=mask)


@triton.jit
def _outputs(
    q, q_b, q_t, q_h, q_d, rate, r_b, r_t, r_h, errors, from_q, taken, read, states, momenta, result,
    T, H, chunks, K, V,
    BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    h, chunk, b = program % H, program // H % chunks, program // H // chunks
    steps = tl.arange(0, BT)
    rows, values = chunk * BT + steps, tl.program_id(1) * BV + tl.arange(0, BV)
    P = tl.load(_square(from_q, program, steps, BT)) * tl.load(_square(taken, program, steps, BT))
    w = tile(errors + (b * T * H + h) * V, rows, values, H * V, 1, T, V, DTYPE)
    w *= _rates(rate, r_b, r_t, r_h, b, h, rows, T, DTYPE)[:, None]
    y = tl.dot(P, w, input_precision=PRECISION)
    of_M, of_S = _pair(read, program, steps, BT)
    for first in range(0, K, BK):
        keys = first + tl.arange(0, BK)
        q_tile = tile(q + b * q_b + h * q_h, rows, keys, q_t, q_d, T, K, DTYPE)
        M = state_tile(states + program * K * V, keys, values, K, V)
        S = state_tile(momenta + program * K * V, keys, values, K, V)
        y += tl.dot(q_tile * of_M, M, input_precision=PRECISION)
        y += tl.dot(q_tile * of_S, S, input_precision=PRECISION)
    place = ((b * T + rows[:, None]) * H + h) * V + values[None, :]
    store(result + place, SCALE * y, mask=(rows < T)[:, None] & (values < V)[None, :])


@triton.jit
def _correction_gradients(
    q, q_b, q_t, q_h, q_d, k, k_b, k_t, k_h, k_d, dy, dy_b, dy_t, dy_h, dy_d, rate, r_b, r_t, r_h,
    errors, from_q, from_k, inverse, taken, before, read, error, written, across, dstate, dmomentum,
    dv, drate, states, momenta, dinitial_state, dinitial_momentum, B, T, H, chunks, K, V,
    BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    column = tl.program_id(1)
    steps, keys, values = tl.arange(0, BT), tl.arange(0, BK), column * BV + tl.arange(0, BV)
    mask = (keys < K)[:, None] & (values < V)[None, :]
    place = keys[:, None] * V + values[None, :]
    dM = tl.load(dstate + bh * K * V + place, mask=mask, other=0.0)
    dS = tl.load(dmomentum + bh * K * V + place, mask=mask, other=0.0)
    for index in range(chunks):
        chunk = chunks - 1 - tl.cast(index, tl.int64)
        program = (b * chunks + chunk) * H + h
        tl.store(states + program * K * V + place, dM, mask=mask)
        tl.store(momenta + program * K * V + place, dS, mask=mask)
        rows = chunk * BT + steps
        k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
        dy_tile = SCALE * tile(dy + b * dy_b + h * dy_h, rows, values, dy_t, dy_d, T, V, DTYPE)
        P = tl.load(_square(from_q, program, steps, BT)) * tl.load(_square(taken, program, steps, BT))
        of_M, of_S = _pair(written, program, steps, BT)
        dw = tl.dot(tl.trans(P), dy_tile, input_precision=PRECISION)
        dw += tl.dot(k_tile * of_M, dM, input_precision=PRECISION)
        dw += tl.dot(k_tile * of_S, dS, input_precision=PRECISION)
        scaled = dw * _rates(rate, r_b, r_t, r_h, b, h, rows, T, DTYPE)[:, None]
        dv_tile = tl.dot(tl.trans(tl.load(_square(inverse, program, steps, BT))), scaled, input_precision=PRECISION)
        L = tl.load(_square(from_k, program, steps, BT)) * tl.load(_square(before, program, steps, BT))
        dw -= tl.dot(tl.trans(L), dv_tile, input_precision=PRECISION)
        here = ((b * T + rows[:, None]) * H + h) * V + values[None, :]
        exists = (rows < T)[:, None] & (values < V)[None, :]
        tl.store(dv + here, dv_tile, mask=exists)
        e = tl.load(errors + here, mask=exists, other=0.0)
        tl.store(drate + ((column.to(tl.int64) * B + b) * T + rows) * H + h, tl.sum(e * dw, 1), mask=rows < T)
        q_tile = tile(q + b * q_b + h * q_h, rows, keys, q_t, q_d, T, K, DTYPE)
        kept, moved, carried = _across(across, program)
        dS = moved * dM + carried * dS
        dM *= kept
        of_M, of_S = _pair(read, program, steps, BT)
        dM += tl.dot(tl.trans(q_tile * of_M), dy_tile, input_precision=PRECISION)
        dS += tl.dot(tl.trans(q_tile * of_S), dy_tile, input_precision=PRECISION)
        of_M, of_S = _pair(error, program, steps, BT)
        dM -= tl.dot(tl.trans(k_tile * of_M), dv_tile, input_precision=PRECISION)
        dS -= tl.dot(tl.trans(k_tile * of_S), dv_tile, input_precision=PRECISION)
    tl.store(dinitial_state + bh * K * V + place, dM, mask=mask)
    tl.store(dinitial_momentum + bh * K * V + place, dS, mask=mask)


@triton.jit
def _settle(tile_M, tile_S, shares, dshares, program, part, from_tile, steps, BT: tl.constexpr):
    """A row's gradient from those of its products with M and S, and what those of the shares are."""
    of_M, of_S = _pair(shares, program, steps, BT)
    place = dshares + (part * BT + steps) * 2
    tl.store(place, tl.sum(from_tile * tile_M, 1))
    tl.store(place + 1, tl.sum(from_tile * tile_S, 1))
    return of_M * tile_M + of_S * tile_S


@triton.jit
def _gradients(
    q, q_b, q_t, q_h, q_d, k, k_b, k_t, k_h, k_d, dy, dy_b, dy_t, dy_h, dy_d, rate, r_b, r_t, r_h,
    dv, errors, from_q, from_k, taken, before, read, error, written, states, momenta, dstates, dmomenta,
    dq, dk, dtaken, dbefore, dread, derror, dwritten, dacross, T, H, chunks, K, V,
    BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    h, chunk, b = program % H, program // H % chunks, program // H // chunks
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    block = tl.program_id(1).to(tl.int64)
    part = block * tl.num_programs(0) + program
    keys = block * BK + tl.arange(0, BK)
    q_tile = tile(q + b * q_b + h * q_h, rows, keys, q_t, q_d, T, K, DTYPE)
    k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
    r = _rates(rate, r_b, r_t, r_h, b, h, rows, T, DTYPE)[:, None]

    dP, dL = tl.zeros((BT, BT), DTYPE), tl.zeros((BT, BT), DTYPE)
    read_M, read_S = tl.zeros((BT, BK), DTYPE), tl.zeros((BT, BK), DTYPE)
    error_M, error_S = tl.zeros((BT, BK), DTYPE), tl.zeros((BT, BK), DTYPE)
    written_M, written_S = tl.zeros((BT, BK), DTYPE), tl.zeros((BT, BK), DTYPE)
    kept, moved, carried = tl.zeros((BK,), DTYPE), tl.zeros((BK,), DTYPE), tl.zeros((BK,), DTYPE)
    for first in range(0, V, BV):
        values = first + tl.arange(0, BV)
        w = tile(errors + (b * T * H + h) * V, rows, values, H * V, 1, T, V, DTYPE) * r
        dv_tile = tile(dv + (b * T * H + h) * V, rows, values, H * V, 1, T, V, DTYPE)
        dy_tile = SCALE * tile(dy + b * dy_b + h * dy_h, rows, values, dy_t, dy_d, T, V, DTYPE)
        M = state_tile(states + program * K * V, keys, values, K, V)
        S = state_tile(momenta + program * K * V, keys, values, K, V)
        dM = state_tile(dstates + program * K * V, keys, values, K, V)
        dS = state_tile(dmomenta + program * K * V, keys, values, K, V)
        dP += tl.dot(dy_tile, tl.trans(w), input_precision=PRECISION)
        dL -= tl.dot(dv_tile, tl.trans(w), input_precision=PRECISION)
        read_M += tl.dot(dy_tile, tl.trans(M), input_precision=PRECISION)
        read_S += tl.dot(dy_tile, tl.trans(S), input_precision=PRECISION)
        error_M -= tl.dot(dv_tile, tl.trans(M), input_precision=PRECISION)
        error_S -= tl.dot(dv_tile, tl.trans(S), input_precision=PRECISION)
        written_M += tl.dot(w, tl.trans(dM), input_precision=PRECISION)
        written_S += tl.dot(w, tl.trans(dS), input_precision=PRECISION)
        kept += tl.sum(M * dM, 1)
        moved += tl.sum(S * dM, 1)
        carried += tl.sum(S * dS, 1)

    dq_tile = _settle(read_M, read_S, read, dread, program, part, q_tile, steps, BT)
    dk_tile = _settle(error_M, error_S, error, derror, program, part, k_tile, steps, BT)
    dk_tile += _settle(written_M, written_S, written, dwritten, program, part, k_tile, steps, BT)
    tl.store(dacross + part * 3, tl.sum(kept, 0))
    tl.store(dacross + part * 3 + 1, tl.sum(moved, 0))
    tl.store(dacross + part * 3 + 2, tl.sum(carried, 0))
    if block == 0:
        tl.store(_square(dtaken, program, steps, BT), dP * tl.load(_square(from_q, program, steps, BT)))
        tl.store(_square(dbefore, program, steps, BT), dL * tl.load(_square(from_k, program, steps, BT)))
    dP *= tl.load(_square(taken, program, steps, BT))
    dL *= tl.load(_square(before, program, steps, BT))
    dq_tile += tl.dot(dP, k_tile, input_precision=PRECISION)
    dk_tile += tl.dot(tl.trans(dP), q_tile, input_precision=PRECISION)
    dk_tile += tl.dot(dL + tl.trans(dL), k_tile, input_precision=PRECISION)
    place = ((b * T + rows[:, None]) * H + h) * K + keys[None, :]
    mask = (rows < T)[:, None] & (keys < K)[None, :]
    store(dq + place, dq_tile, mask=mask)
    store(dk + place, dk_tile, mask=mask)
