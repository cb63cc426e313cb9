"""Block-sparse attention in Triton: each tile of queries runs through the list of key blocks it sees."""

# Triton's types call constants constexpr and ranges not iterable.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.block_sparse_attention.gathered import active_blocks
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
def _forward_kernel(
    q, k, v, lists, counts, output, total, T, S, heads, groups, list_b, list_h,
    q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    SCALE: tl.constexpr, SIZE: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (SIZE + BLOCK_M - 1) // BLOCK_M  # a query block
    STEPS: tl.constexpr = (SIZE + BLOCK_N - 1) // BLOCK_N  # tiles of a key block
    blocks, key_blocks = tl.cdiv(T, SIZE), tl.cdiv(S, SIZE)
    block, pair = tl.program_id(0) // TILES % blocks, tl.program_id(0) // TILES // blocks
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    group = head // (heads // groups)
    begin = block * SIZE + tl.program_id(0) % TILES * BLOCK_M
    q += batch * q_b + head * q_h
    k += batch * k_b + group * k_h
    v += batch * v_b + group * v_h
    line = (batch * list_b + head * list_h) * blocks + block
    lists += line * key_blocks
    row, column = begin + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid = (row < T) & (row < (block + 1) * SIZE)

    query = load_tile(q, begin.to(tl.int64), valid, q_t, q_d, BLOCK_M, K, BLOCK_K, DOT)
    highest, sums = tl.full((BLOCK_M,), -float("inf"), SUM), tl.zeros((BLOCK_M,), SUM)
    summed = tl.zeros((BLOCK_M, BLOCK_V), SUM)
    for step in range(tl.load(counts + line) * STEPS):
        key_block = tl.load(lists + step // STEPS)
        start = key_block * SIZE + step % STEPS * BLOCK_N
        place = start + column
        inside = (place < S) & (place < (key_block + 1) * SIZE)
        key = load_tile(k, start.to(tl.int64), inside, k_t, k_d, BLOCK_N, K, BLOCK_K, DOT)
        value = load_tile(v, start.to(tl.int64), inside, v_t, v_d, BLOCK_N, V, BLOCK_V, DOT)
        seen = inside[None, :] & (row >= 0)[:, None]
        if CAUSAL:
            seen = seen & (place[None, :] <= (row + (S - T))[:, None])
        highest, sums, summed = softmax_step(
            highest, sums, summed, query, key, value, seen, SCALE, MASKED, SUM, PRECISION
        )
    summed, log_sum = softmax_end(highest, sums, summed)
    store_tile(
        output + (batch * T * heads + head) * V, begin.to(tl.int64), valid, heads * V, summed, BLOCK_M, V, BLOCK_V
    )
    tl.store(total + (batch * heads + head) * T + row, log_sum, mask=valid)


@triton.jit
def _query_gradient_kernel(
    doutput, output, total, bases, factors, delta, q, k, v, lists, counts, dq, T, S, heads, groups, list_b, list_h,
    o_b, o_t, o_h, o_d, q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    SCALE: tl.constexpr, SIZE: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (SIZE + BLOCK_M - 1) // BLOCK_M
    STEPS: tl.constexpr = (SIZE + BLOCK_N - 1) // BLOCK_N
    blocks, key_blocks = tl.cdiv(T, SIZE), tl.cdiv(S, SIZE)
    block, pair = tl.program_id(0) // TILES % blocks, tl.program_id(0) // TILES // blocks
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    group = head // (heads // groups)
    begin = block * SIZE + tl.program_id(0) % TILES * BLOCK_M
    q += batch * q_b + head * q_h
    k += batch * k_b + group * k_h
    v += batch * v_b + group * v_h
    line = (batch * list_b + head * list_h) * blocks + block
    lists += line * key_blocks
    row, column = begin + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid = (row < T) & (row < (block + 1) * SIZE)

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
        for step in range(tl.load(counts + line) * STEPS):
            key_block = tl.load(lists + step // STEPS)
            start = key_block * SIZE + step % STEPS * BLOCK_N
            place = start + column
            inside = (place < S) & (place < (key_block + 1) * SIZE)
            key = load_tile(k, start.to(tl.int64), inside, k_t, k_d, BLOCK_N, K, BLOCK_K, DOT)
            value = load_tile(v, start.to(tl.int64), inside, v_t, v_d, BLOCK_N, V, BLOCK_V, DOT)
            seen = inside[None, :] & (row >= 0)[:, None]
            if CAUSAL:
                seen = seen & (place[None, :] <= (row + (S - T))[:, None])
            if sweep == 0:
                highest, sums, products = mean_step(
                    highest, sums, products, query, key, value, grad, seen, SCALE, MASKED, SUM, PRECISION
                )
            else:
                gradient = query_gradient_step(
                    gradient, query, key, value, grad, base, inner, seen, SCALE, MASKED, SUM, PRECISION
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
    doutput, bases, factors, delta, q, k, v, lists, counts, dk, dv, T, S, heads, groups, list_b, list_h,
    o_b, o_t, o_h, o_d, q_b, q_t, q_h, q_d, k_b, k_t, k_h, k_d, v_b, v_t, v_h, v_d,
    SCALE: tl.constexpr, SIZE: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (SIZE + BLOCK_N - 1) // BLOCK_N  # a key block
    STEPS: tl.constexpr = (SIZE + BLOCK_M - 1) // BLOCK_M  # tiles of a query block
    blocks, query_blocks = tl.cdiv(S, SIZE), tl.cdiv(T, SIZE)
    block, pair = tl.program_id(0) // TILES % blocks, tl.program_id(0) // TILES // blocks
    batch, group = (pair // groups).to(tl.int64), (pair % groups).to(tl.int64)
    begin = block * SIZE + tl.program_id(0) % TILES * BLOCK_N
    k += batch * k_b + group * k_h
    v += batch * v_b + group * v_h
    q += batch * q_b
    doutput += batch * o_b
    place, column = begin + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    valid = (place < S) & (place < (block + 1) * SIZE)
    key = load_tile(k, begin.to(tl.int64), valid, k_t, k_d, BLOCK_N, K, BLOCK_K, DOT)
    value = load_tile(v, begin.to(tl.int64), valid, v_t, v_d, BLOCK_N, V, BLOCK_V, DOT)
    dkey, dvalue = tl.zeros((BLOCK_N, BLOCK_K), SUM), tl.zeros((BLOCK_N, BLOCK_V), SUM)
    for member in range(heads // groups):
        head = group * (heads // groups) + member
        line = (batch * list_b + head * list_h) * blocks + block
        for step in range(tl.load(counts + line) * STEPS):
            query_block = tl.load(lists + line * query_blocks + step // STEPS)
            start = query_block * SIZE + step % STEPS * BLOCK_M
            row = start + column
            inside = (row < T) & (row < (query_block + 1) * SIZE)
            query = load_tile(q + head * q_h, start.to(tl.int64), inside, q_t, q_d, BLOCK_M, K, BLOCK_K, DOT)
            grad = load_tile(doutput + head * o_h, start.to(tl.int64), inside, o_t, o_d, BLOCK_M, V, BLOCK_V, DOT)
            offset = (batch * heads + head) * T
            base = tl.load(bases + offset + row, mask=inside, other=float("inf"))  # weight 0 outside
            inner = tl.load(delta + offset + row, mask=inside, other=0.0)
            factor = tl.load(factors + offset + row, mask=inside, other=1.0)
            seen = valid[:, None] & (row >= 0)[None, :]
            if CAUSAL:
                seen = seen & (place[:, None] <= (row + (S - T))[None, :])
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
                MASKED,
                SUM,
                PRECISION,
                EXACT,
            )
    offset = batch * S * groups + group
    store_tile(dk + offset * K, begin.to(tl.int64), valid, groups * K, dkey * SCALE, BLOCK_N, K, BLOCK_K)
    store_tile(dv + offset * V, begin.to(tl.int64), valid, groups * V, dvalue, BLOCK_N, V, BLOCK_V)


def forward(
    q: Tensor, k: Tensor, v: Tensor, block_mask: Tensor, block_size: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as the reference."""
    (batch, length, heads, _), (keys, groups, dim) = q.shape, v.shape[1:]
    output = q.new_empty(batch, length, heads, dim)
    total = q.new_empty(batch, heads, length, dtype=compute_dtype(q, k, v))
    _, lists, counts = active_blocks(block_mask, block_size, length, keys, causal)
    sizes = _tile_sizes("forward", q, k, v, block_size)
    _forward_kernel[(_programs(length, block_size, sizes["BLOCK_M"]) * batch * heads,)](
        q, k, v, lists.int(), counts.int(), output, total, length, keys, heads, groups, *_list_strides(block_mask),
        *q.stride(), *k.stride(), *v.stride(), **_options(q, k, v, block_size, causal, scale, sizes), **sizes,
    )  # fmt: skip
    return output, total


def backward(doutput, output, total, q, k, v, block_mask, block_size, causal, scale) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    (batch, length, heads, _), (keys, groups) = q.shape, v.shape[1:3]
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    output, total = output.contiguous(), total.contiguous()
    bases, factors, delta = (total.new_empty(total.shape) for _ in range(3))
    allowed, lists, counts = active_blocks(block_mask, block_size, length, keys, causal)
    shared = (
        length, keys, heads, groups, *_list_strides(block_mask),
        *doutput.stride(), *q.stride(), *k.stride(), *v.stride(),
    )  # fmt: skip
    sizes = _tile_sizes("query_gradient", q, k, v, block_size)
    _query_gradient_kernel[(_programs(length, block_size, sizes["BLOCK_M"]) * batch * heads,)](
        doutput, output, total, bases, factors, delta, q, k, v, lists.int(), counts.int(), dq, *shared,
        **_options(q, k, v, block_size, causal, scale, sizes), **sizes,
    )  # fmt: skip
    _, lists, counts = active_blocks(allowed.mT, block_size, keys, length, False)
    sizes = _tile_sizes("key_gradient", q, k, v, block_size)
    _key_gradient_kernel[(_programs(keys, block_size, sizes["BLOCK_N"]) * batch * groups,)](
        doutput, bases, factors, delta, q, k, v, lists.int(), counts.int(), dk, dv, *shared,
        **_options(q, k, v, block_size, causal, scale, sizes), **sizes,
    )  # fmt: skip
    return dq, dk, dv


def _options(q: Tensor, k: Tensor, v: Tensor, block_size: int, causal: bool, scale: float, sizes: dict) -> dict:
    whole = block_size % sizes["BLOCK_N"] == 0 and k.shape[1] % block_size == 0  # all keys of a tile exist
    options = {"SCALE": scale, "SIZE": block_size, "CAUSAL": causal, "MASKED": causal or not whole}
    return options | constants(q, k, v)


def _tile_sizes(kernel: str, q: Tensor, k: Tensor, v: Tensor, block_size: int) -> dict[str, int]:
    """No tile larger than a block, or 16."""
    sizes = tile_sizes("block_sparse_attention", kernel, q, k, v)
    most = max(16, triton.next_power_of_2(block_size))
    return sizes | {name: min(sizes[name], most) for name in ("BLOCK_M", "BLOCK_N")}


def _programs(length: int, block_size: int, tile: int) -> int:
    return triton.cdiv(length, block_size) * triton.cdiv(block_size, tile)


def _list_strides(block_mask: Tensor) -> tuple[int, int]:
    """Lists from one batch entry or head to the next; 0 where they share theirs."""
    batch, heads = block_mask.shape[:2]
    return heads if batch > 1 else 0, 1 if heads > 1 else 0
