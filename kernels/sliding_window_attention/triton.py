"""Attention within a sliding window in Triton: tiles of queries against tiles of the keys they see, softmax online."""

# Triton's types call constants constexpr and ranges not iterable.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common.attention_tiles import (
    LOG2E,
    constants,
    key_gradient_step,
    load_tile,
    mean_end,
    mean_step,
    query_gradient_step,
    softmax_end,
    softmax_step,
    store_tile,
    tile_sizes,
)
from zoo.kernels.dispatch import compute_dtype


@triton.jit
def _earliest(first, row, valid, position, window, HAS_FIRST: tl.constexpr):
    """Position of the first key in the window of each query; ``first`` points at the sequence's first row."""
    earliest = tl.maximum(position - window + 1, 0)
    if HAS_FIRST:
        earliest = tl.maximum(earliest, tl.load(first + row, mask=valid, other=0).to(tl.int32))
    return earliest


@triton.jit
def _key_tiles(earliest, valid, begin, end, PHASE: tl.constexpr, SINKS: tl.constexpr, BLOCK_N: tl.constexpr):
    """First key and past-the-end key of a phase of the queries at positions begin ... end, in whole tiles.

    Phase 0: the sinks before the window; 1: tiles that the window begins in; 2: tiles that every query sees in full;
    3: tiles that queries lie in.
    """
    start = tl.min(tl.where(valid, earliest, 2147483647), 0) // BLOCK_N * BLOCK_N
    last = tl.cdiv(end, BLOCK_N) * BLOCK_N
    full = tl.minimum(tl.cdiv(tl.max(tl.where(valid, earliest, 0), 0), BLOCK_N) * BLOCK_N, last)
    full_end = tl.maximum((begin + 1) // BLOCK_N * BLOCK_N, full)
    if PHASE == 0:
        low, high = start * 0, tl.minimum(tl.cdiv(start * 0 + SINKS, BLOCK_N) * BLOCK_N, start)
    elif PHASE == 1:
        low, high = start, full
    elif PHASE == 2:
        low, high = full, full_end
    else:
        low, high = full_end, last
    return low, high


@triton.jit
def _forward_kernel(
    q, k, v, first, output, total, T, S, heads, groups, window,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    SCALE: tl.constexpr, SINKS: tl.constexpr, HAS_FIRST: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(T, BLOCK_M)
    begin = tl.program_id(0) % tiles * BLOCK_M
    batch, head = (tl.program_id(0) // tiles // heads).to(tl.int64), (tl.program_id(0) // tiles % heads).to(tl.int64)
    group = head // (heads // groups)
    q += batch * q_b + head * q_h
    k += batch * k_b + group * k_h
    v += batch * v_b + group * v_h
    row, column = begin + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid, position = row < T, row + (S - T)
    earliest = _earliest(first + batch * T, row, valid, position, window, HAS_FIRST)

    query = load_tile(q, begin.to(tl.int64), valid, q_t, q_d, BLOCK_M, K, BLOCK_K, DOT)
    highest, sums = tl.full((BLOCK_M,), -float("inf"), SUM), tl.zeros((BLOCK_M,), SUM)
    summed = tl.zeros((BLOCK_M, BLOCK_V), SUM)
    for phase in tl.static_range(0 if SINKS else 1, 4):
        low, high = _key_tiles(
            earliest, valid, begin + S - T, tl.minimum(begin + BLOCK_M, T) + S - T, phase, SINKS, BLOCK_N
        )
        for step in range((high - low) // BLOCK_N):
            start = low + step * BLOCK_N
            place = start + column
            key = load_tile(k, start.to(tl.int64), place < S, k_t, k_d, BLOCK_N, K, BLOCK_K, DOT)
            value = load_tile(v, start.to(tl.int64), place < S, v_t, v_d, BLOCK_N, V, BLOCK_V, DOT)
            seen = (place[None, :] >= earliest[:, None]) | (place < SINKS)[None, :]
            seen = seen & (place[None, :] <= position[:, None])
            highest, sums, summed = softmax_step(
                highest, sums, summed, query, key, value, seen, SCALE, phase != 2, SUM, PRECISION
            )
    summed, log_sum = softmax_end(highest, sums, summed)
    store_tile(
        output + (batch * T * heads + head) * V, begin.to(tl.int64), valid, heads * V, summed, BLOCK_M, V, BLOCK_V
    )
    tl.store(total + (batch * heads + head) * T + row, log_sum, mask=valid)


@triton.jit
def _query_gradient_kernel(
    doutput, output, total, bases, factors, delta, q, k, v, first, dq, T, S, heads, groups, window,
    o_b, o_t, o_h, o_d, q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    SCALE: tl.constexpr, SINKS: tl.constexpr, HAS_FIRST: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(T, BLOCK_M)
    begin = tl.program_id(0) % tiles * BLOCK_M
    batch, head = (tl.program_id(0) // tiles // heads).to(tl.int64), (tl.program_id(0) // tiles % heads).to(tl.int64)
    group = head // (heads // groups)
    q += batch * q_b + head * q_h
    k += batch * k_b + group * k_h
    v += batch * v_b + group * v_h
    row, column = begin + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid, position = row < T, row + (S - T)
    earliest = _earliest(first + batch * T, row, valid, position, window, HAS_FIRST)

    query = load_tile(q, begin.to(tl.int64), valid, q_t, q_d, BLOCK_M, K, BLOCK_K, DOT)
    grad = load_tile(doutput + batch * o_b + head * o_h, begin.to(tl.int64), valid, o_t, o_d, BLOCK_M, V, BLOCK_V, DOT)
    offset = (batch * heads + head) * T + row
    base, factor, inner = tl.zeros((BLOCK_M,), SUM), tl.full((BLOCK_M,), 1.0, SUM), tl.zeros((BLOCK_M,), SUM)
    if not EXACT:
        out = load_tile(
            output + (batch * T * heads + head) * V, begin.to(tl.int64), valid, heads * V, 1, BLOCK_M, V, BLOCK_V, SUM
        )
        base = tl.load(total + offset, mask=valid, other=float("inf")) * LOG2E
        inner = tl.sum(grad.to(SUM) * out, 1)
    highest, sums, products = (
        tl.full((BLOCK_M,), -float("inf"), SUM),
        tl.zeros((BLOCK_M,), SUM),
        tl.zeros((BLOCK_M,), SUM),
    )
    gradient = tl.zeros((BLOCK_M, BLOCK_K), SUM)
    for sweep in tl.static_range(0 if EXACT else 1, 2):
        for phase in tl.static_range(0 if SINKS else 1, 4):
            low, high = _key_tiles(
                earliest, valid, begin + S - T, tl.minimum(begin + BLOCK_M, T) + S - T, phase, SINKS, BLOCK_N
            )
            for step in range((high - low) // BLOCK_N):
                start = low + step * BLOCK_N
                place = start + column
                key = load_tile(k, start.to(tl.int64), place < S, k_t, k_d, BLOCK_N, K, BLOCK_K, DOT)
                value = load_tile(v, start.to(tl.int64), place < S, v_t, v_d, BLOCK_N, V, BLOCK_V, DOT)
                seen = (place[None, :] >= earliest[:, None]) | (place < SINKS)[None, :]
                seen = seen & (place[None, :] <= position[:, None])
                if sweep == 0:
                    highest, sums, products = mean_step(
                        highest, sums, products, query, key, value, grad, seen, SCALE, phase != 2, SUM, PRECISION
                    )
                else:
                    gradient = query_gradient_step(
                        gradient, query, key, value, grad, base, inner, seen, SCALE, phase != 2, SUM, PRECISION
                    )
        if sweep == 0:
            base, factor, inner = mean_end(highest, sums, products)
    tl.store(bases + offset, base, mask=valid)
    tl.store(factors + offset, factor, mask=valid)
    tl.store(delta + offset, inner, mask=valid)
    store_tile(
        dq + (batch * T * heads + head) * K, begin.to(tl.int64), valid, heads * K, gradient * (factor * SCALE)[:, None],
        BLOCK_M, K, BLOCK_K,
    )  # fmt: skip


@triton.jit
def _key_gradient_kernel(
    doutput, bases, factors, delta, q, k, v, first, dk, dv, T, S, heads, groups, window,
    o_b, o_t, o_h, o_d, q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    SCALE: tl.constexpr, SINKS: tl.constexpr, HAS_FIRST: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(S, BLOCK_N)
    begin = tl.program_id(0) % tiles * BLOCK_N
    batch, group = (tl.program_id(0) // tiles // groups).to(tl.int64), (tl.program_id(0) // tiles % groups).to(tl.int64)
    k += batch * k_b + group * k_h
    v += batch * v_b + group * v_h
    q += batch * q_b
    doutput += batch * o_b
    place, column = begin + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    valid = place < S
    key = load_tile(k, begin.to(tl.int64), valid, k_t, k_d, BLOCK_N, K, BLOCK_K, DOT)
    value = load_tile(v, begin.to(tl.int64), valid, v_t, v_d, BLOCK_N, V, BLOCK_V, DOT)
    dkey, dvalue = tl.zeros((BLOCK_N, BLOCK_K), SUM), tl.zeros((BLOCK_N, BLOCK_V), SUM)

    # queries, counted from the first row: all see the tile in full between `full` and `full_end`
    low = tl.maximum(begin - (S - T), 0) // BLOCK_M * BLOCK_M
    high = tl.minimum(begin + BLOCK_N - 1 + window - (S - T), T)
    if SINKS:
        high = tl.where(begin < SINKS, T, high)
    high = tl.maximum(tl.cdiv(high, BLOCK_M) * BLOCK_M, low)
    full = tl.maximum(begin + BLOCK_N - 1 - (S - T), 0)
    full = tl.minimum(tl.cdiv(full, BLOCK_M) * BLOCK_M, high)
    full_end = tl.maximum(tl.minimum(begin + window - (S - T), T) // BLOCK_M * BLOCK_M, full)
    if HAS_FIRST:
        full_end = full
    for member in range(heads // groups):
        head = group * (heads // groups) + member
        line = (batch * heads + head) * T
        for phase in tl.static_range(3):
            if phase == 0:
                low_row, high_row = low, full
            elif phase == 1:
                low_row, high_row = full, full_end
            else:
                low_row, high_row = full_end, high
            for step in range((high_row - low_row) // BLOCK_M):
                start = low_row + step * BLOCK_M
                row = start + column
                position = row + (S - T)
                query = load_tile(q + head * q_h, start.to(tl.int64), row < T, q_t, q_d, BLOCK_M, K, BLOCK_K, DOT)
                grad = load_tile(doutput + head * o_h, start.to(tl.int64), row < T, o_t, o_d, BLOCK_M, V, BLOCK_V, DOT)
                base = tl.load(bases + line + row, mask=row < T, other=float("inf"))
                inner = tl.load(delta + line + row, mask=row < T, other=0.0)
                factor = tl.load(factors + line + row, mask=row < T, other=1.0)
                earliest = _earliest(first + batch * T, row, row < T, position, window, HAS_FIRST)
                seen = (place[:, None] >= earliest[None, :]) | (place < SINKS)[:, None]
                seen = seen & (place[:, None] <= position[None, :])
                dkey, dvalue = key_gradient_step(
                    dkey,
                    dvalue,
                    query,
                    key,
                    value,
                    grad,
                    base,
                    inner,
                    factor,
                    seen,
                    SCALE,
                    phase != 1,
                    SUM,
                    PRECISION,
                    EXACT,
                )
    offset = batch * S * groups + group
    store_tile(dk + offset * K, begin.to(tl.int64), valid, groups * K, dkey * SCALE, BLOCK_N, K, BLOCK_K)
    store_tile(dv + offset * V, begin.to(tl.int64), valid, groups * V, dvalue, BLOCK_N, V, BLOCK_V)


def forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, window: int, sinks: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference."""
    (batch, length, heads, _), (keys, groups, dim) = q.shape, v.shape[1:]
    output = q.new_empty(batch, length, heads, dim)
    total = q.new_empty(batch, heads, length, dtype=compute_dtype(q, k, v))
    sizes = tile_sizes("sliding_window_attention", "forward", q, k, v)
    _forward_kernel[(triton.cdiv(length, sizes["BLOCK_M"]) * batch * heads,)](
        q, k, v, q if first is None else first, output, total, length, keys, heads, groups, window,
        *q.stride(), *k.stride(), *v.stride(),
        SCALE=scale, SINKS=sinks, HAS_FIRST=first is not None, **constants(q, k, v), **sizes,
    )  # fmt: skip
    return output, total


def backward(doutput, output, total, q, k, v, first, window, sinks, scale) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    (batch, length, heads, _), (keys, groups) = q.shape, v.shape[1:3]
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    output, total = output.contiguous(), total.contiguous()
    bases, factors, delta = (total.new_empty(total.shape) for _ in range(3))
    sizes = tile_sizes("sliding_window_attention", "query_gradient", q, k, v)
    shared = length, keys, heads, groups, window, *doutput.stride(), *q.stride(), *k.stride(), *v.stride()
    options = {"SCALE": scale, "SINKS": sinks, "HAS_FIRST": first is not None} | constants(q, k, v)
    first = q if first is None else first
    _query_gradient_kernel[(triton.cdiv(length, sizes["BLOCK_M"]) * batch * heads,)](
        doutput, output, total, bases, factors, delta, q, k, v, first, dq, *shared, **options, **sizes
    )
    sizes = tile_sizes("sliding_window_attention", "key_gradient", q, k, v)
    _key_gradient_kernel[(triton.cdiv(keys, sizes["BLOCK_N"]) * batch * groups,)](
        doutput, bases, factors, delta, q, k, v, first, dk, dv, *shared, **options, **sizes
    )
    return dq, dk, dv
