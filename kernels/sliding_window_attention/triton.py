"""Attention within a sliding window in Triton: tiles of queries against tiles of the keys they see, softmax online.

The tile steps below also serve the block-sparse kernels. Products are of the inputs' dtype with float32 sums.
"""

# Triton's types call constants constexpr and ranges not iterable.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.triton_support import block_sizes

LOG2E = tl.constexpr(1.4426950408889634)
TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@triton.jit
def load_tile(
    pointer, start, valid, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Rows start (int64) ... start + ROWS of a matrix with COLUMNS columns, zeros where invalid: (ROWS, BLOCK)."""
    row, column = tl.arange(0, ROWS).to(tl.int64), tl.arange(0, BLOCK).to(tl.int64)
    offsets = row[:, None] * row_stride + column[None, :] * column_stride
    mask = valid[:, None] & (column < COLUMNS)[None, :]
    return tl.load(pointer + start * row_stride + offsets, mask=mask, other=0.0).to(DOT)


@triton.jit
def store_tile(pointer, start, valid, row_stride, tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.arange(0, ROWS).to(tl.int64), tl.arange(0, BLOCK).to(tl.int64)
    offsets = start * row_stride + row[:, None] * row_stride + column[None, :]
    tl.store(pointer + offsets, tile, mask=valid[:, None] & (column < COLUMNS)[None, :])


@triton.jit
def softmax_step(
    highest, sums, output, q, k, v, seen, SCALE: tl.constexpr, MASKED: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile of keys to the running maximum (in units of log 2), sum and output; rows may have seen nothing."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=SUM) * (SCALE * LOG2E)
    if MASKED:
        scores = tl.where(seen, scores, -float("inf"))
    risen = tl.maximum(highest, tl.max(scores, 1))
    base = tl.where(risen == -float("inf"), 0.0, risen)
    weights, kept = tl.exp2(scores - base[:, None]), tl.exp2(highest - base)
    output = output * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION, out_dtype=SUM)
    return risen, sums * kept + tl.sum(weights, 1), output


@triton.jit
def softmax_end(highest, sums, output):
    """The output and the logarithm of the sum; 0 and infinity for a row that has seen nothing."""
    empty = sums == 0.0
    divisor = tl.where(empty, 1.0, sums)
    total = tl.where(empty, float("inf"), (highest + tl.log2(divisor)) / LOG2E)
    return output / divisor[:, None], total


@triton.jit
def query_gradient_step(
    dq, q, k, v, doutput, base, delta, seen, SCALE: tl.constexpr, MASKED: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile of keys to dq / SCALE; the weights are exp2(score - base), times what the caller multiplies with."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=SUM) * (SCALE * LOG2E)
    if MASKED:
        scores = tl.where(seen, scores, -float("inf"))
    weights = tl.exp2(scores - base[:, None])
    dscores = weights * (tl.dot(doutput, tl.trans(v), input_precision=PRECISION, out_dtype=SUM) - delta[:, None])
    return dq + tl.dot(dscores.to(k.dtype), k, input_precision=PRECISION, out_dtype=SUM)


@triton.jit
def mean_step(
    highest, sums, products, q, k, v, doutput, seen, SCALE: tl.constexpr, MASKED: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """As softmax_step, for the sum of weights times their gradients in place of the output."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=SUM) * (SCALE * LOG2E)
    if MASKED:
        scores = tl.where(seen, scores, -float("inf"))
    risen = tl.maximum(highest, tl.max(scores, 1))
    base = tl.where(risen == -float("inf"), 0.0, risen)
    weights, kept = tl.exp2(scores - base[:, None]), tl.exp2(highest - base)
    dweights = tl.dot(doutput, tl.trans(v), input_precision=PRECISION, out_dtype=SUM)
    return risen, sums * kept + tl.sum(weights, 1), products * kept + tl.sum(weights * dweights, 1)


@triton.jit
def mean_end(highest, sums, products):
    """Base and factor of a row's weights, exp2(score - base) * factor, and the mean of their gradients."""
    factor = 1.0 / tl.where(sums == 0.0, 1.0, sums)
    return tl.where(sums == 0.0, float("inf"), highest), factor, products * factor


@triton.jit
def key_gradient_step(
    dk, dv, q, k, v, doutput, base, delta, factor, seen, SCALE: tl.constexpr, MASKED: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add a tile of queries to dk / SCALE and dv; everything transposed, ``seen`` is (keys, queries).

    Weights are exp2(score - base), when EXACT times ``factor``.
    """
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=SUM) * (SCALE * LOG2E)
    if MASKED:
        scores = tl.where(seen, scores, -float("inf"))
    weights = tl.exp2(scores - base[None, :])
    if EXACT:
        weights *= factor[None, :]
    dv += tl.dot(weights.to(doutput.dtype), doutput, input_precision=PRECISION, out_dtype=SUM)
    dscores = weights * (tl.dot(v, tl.trans(doutput), input_precision=PRECISION, out_dtype=SUM) - delta[None, :])
    return dk + tl.dot(dscores.to(q.dtype), q, input_precision=PRECISION, out_dtype=SUM), dv


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


def constants(q: Tensor, k: Tensor, v: Tensor) -> dict:
    """Compile-time sizes, dtypes and options of the kernels.

    ``EXACT``: the backward finds each row's maximum, sum and mean of weight gradients in a sweep over the keys of its
    own. The saved logarithm and doutput . output give the same but for a rounding, which counts where softmax has
    settled on one key; in half precision it is lost among the others.
    """
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    exact = dtype.itemsize > 2
    if dtype == torch.bfloat16 and q.device.type == "cpu":
        dtype = torch.float32  # the interpreter holds bfloat16 as integers and would multiply those
    dim, value_dim = q.shape[-1], v.shape[-1]
    return {
        "K": dim,
        "V": value_dim,
        "BLOCK_K": max(16, triton.next_power_of_2(dim)),
        "BLOCK_V": max(16, triton.next_power_of_2(value_dim)),
        "DOT": TYPES[dtype],
        "SUM": TYPES[compute_dtype(q, k, v)],
        "EXACT": exact,
        "enable_fp_fusion": True,
        "PRECISION": "tf32x3" if dtype == torch.float32 and q.device.type == "cuda" else "ieee",
    }


def tile_sizes(operation: str, kernel: str, q: Tensor, k: Tensor, v: Tensor) -> dict[str, int]:
    """Queries (BLOCK_M) and keys (BLOCK_N) a tile by the bytes of a row; measured sizes are classed "forward_128"."""
    width = max(16, triton.next_power_of_2(max(q.shape[-1], v.shape[-1])))
    row = width * max(x.element_size() for x in (q, k, v))
    backward = kernel != "forward"
    if row <= 128:
        sizes = (64, 64, 4, 2) if backward else (128, 64, 4, 3)
    elif row <= 256:
        sizes = (64, 64, 8, 2) if backward else (128, 64, 8, 2)
    elif row <= 512:
        sizes = (32, 32, 4, 2) if backward else (64, 32, 4, 2)
    else:
        sizes = (16, 16, 4, 1) if backward else (32, 16, 4, 1)
    default: dict[str, int] = dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages"), sizes, strict=True))
    return block_sizes(operation, f"{kernel}_{row}", q.device, default)
