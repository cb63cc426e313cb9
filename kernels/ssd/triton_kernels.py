"""The Triton kernels of state-space duality; ``triton.py`` launches them and has the equations.

A kernel with a flag MIRRORED serves the forward and its mirror image in time: rows look at earlier columns, or where
MIRRORED at later ones. ``decays`` (B, H, 3, padded T) holds dt and the two parts of total, ``index`` (B, padded T) the
number of the sequence of each step. Offsets are int64; PRECISION says how products are formed, see ``dot``.
A constexpr made by ``tl.cdiv`` is a tensor inside on triton 3.6, hence the plain quotients.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zoo.kernels.common import chunks

LOWEST: tl.constexpr = tl.constexpr(chunks.LOWEST)


@triton.jit
def running_sums(
    dt, A, decays, dt_b, dt_t, dt_h, length, padded, heads, chunks, CHUNK: tl.constexpr, HEADS: tl.constexpr
):  # fmt: skip
    """Sums of dt A from the start of the chunk, of float64 precision: the rounded sum and what rounding took away."""
    blocks = tl.cdiv(heads, HEADS)
    program = tl.program_id(0)
    head = (program % blocks * HEADS + tl.arange(0, HEADS))[None, :]
    chunk, batch = program // blocks % chunks, (program // blocks // chunks).to(tl.int64)
    t = (chunk.to(tl.int64) * CHUNK + tl.arange(0, CHUNK))[:, None]
    exists = head < heads
    step = tl.load(dt + batch * dt_b + t * dt_t + head.to(tl.int64) * dt_h, mask=exists & (t < length), other=0.0)
    rate = tl.load(A + head, mask=exists, other=0.0).to(tl.float64)
    log_decay = step.to(tl.float64) * rate
    total = tl.cumsum(tl.where(log_decay < LOWEST, LOWEST, log_decay), 0)
    high = total.to(step.dtype)
    place = decays + (batch * heads + head) * 3 * padded + t
    tl.store(place, step, mask=exists)
    tl.store(place + padded, high, mask=exists)
    tl.store(place + 2 * padded, (total - high.to(tl.float64)).to(step.dtype), mask=exists)


@triton.jit
def chunk_states(
    values, maps, decays, index, added, v_b, v_t, v_h, v_p, m_b, m_t, m_g, m_n,
    length, padded, heads, per_group, chunks,
    MIRRORED: tl.constexpr, HAS_STARTS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state behind it, (end o X)^T B; MIRRORED: to its gradient before, (start o dY)^T C."""
    tiles_p: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    p = program % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    n = program // tiles_p % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    batch, chunk, head, group, first = _place(program // (tiles_p * tiles_n), heads, per_group, chunks, CHUNK)
    values += batch * v_b + first * v_t + head * v_h
    maps += batch * m_b + first * m_t + group * m_g
    decays += (batch * heads + head) * 3 * padded + first
    index += batch * padded + first
    left = length - first
    sums = tl.zeros([BLOCK_N, BLOCK_P], decays.dtype.element_ty)
    for begin in range(0, CHUNK, TILE):
        t = begin + tl.arange(0, TILE)
        weight = _to_edge(decays, index, t, padded, chunk, MIRRORED, HAS_STARTS, CHUNK)
        if not MIRRORED:
            weight *= tl.load(decays + t)
        value = _tile(values, t, v_t, left, p, v_p, P, PRECISION).to(sums.dtype) * weight[:, None]
        sums = accurate_dot(_tile(maps, n, m_n, N, t, m_t, left, PRECISION), value, sums, PRECISION)
    place = added + ((batch * chunks + chunk) * heads + head) * (P * N) + p[None, :] * N + n[:, None]
    tl.store(place, sums, mask=(p < P)[None, :] & (n < N)[:, None])


@triton.jit
def pass_states(
    added, initial, decays, index, before, final, forward_states, products, padded, heads, chunks,
    MIRRORED: tl.constexpr, HAS_STARTS: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The recurrence over chunks: state before each and the final one. MIRRORED: the gradient of the state behind each,
    of the initial state, and ``products``, the part of the gradient of total[last] that comes through start[last]."""
    blocks: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    block, head, batch = program % blocks, program // blocks % heads, (program // blocks // heads).to(tl.int64)
    here = block * BLOCK + tl.arange(0, BLOCK)
    exists = here < SIZE
    whole = (batch * heads + head) * SIZE + here
    decays += ((batch * heads + head) * 3 + 1) * padded
    index += batch * padded
    state = tl.load(initial + whole, mask=exists, other=0.0)
    step = -heads * SIZE if MIRRORED else heads * SIZE
    place = ((batch * chunks + (chunks - 1 if MIRRORED else 0)) * heads + head) * SIZE + here
    last = chunks * CHUNK - 1 if MIRRORED else CHUNK - 1
    coming = tl.load(added + place, mask=exists, other=0.0)
    for turn in range(chunks):
        current = coming
        ahead = place + tl.where(turn + 1 < chunks, step, 0)
        coming = tl.load(added + ahead, mask=exists, other=0.0)
        tl.store(before + place, state.to(before.dtype.element_ty), mask=exists)
        across = tl.exp(tl.load(decays + last) + tl.load(decays + padded + last))
        if HAS_STARTS:
            same = tl.load(index + last) == tl.load(index + last - CHUNK, mask=last >= CHUNK, other=0)
            across = tl.where(same, across, 0.0)
        if MIRRORED:
            product = tl.sum(state * tl.load(forward_states + place, mask=exists, other=0.0), 0)
            tl.store(products + ((batch * heads + head) * chunks + last // CHUNK) * blocks + block, across * product)
        state = across * state + current
        place = ahead
        last += -CHUNK if MIRRORED else CHUNK
    tl.store(final + whole, state, mask=exists)


@triton.jit
def outputs(
    values, row_maps, column_maps, decays, index, states, result, v_b, v_t, v_h, v_p,
    r_b, r_t, r_g, r_n, c_b, c_t, c_g, c_n, length, padded, heads, per_group, chunks,
    MIRRORED: tl.constexpr, HAS_STARTS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Y = ((C B^T) o L) (dt o x) + start o (C S^T); MIRRORED: dx = dt o (((B C^T) o L^T) dY + end o (B R^T))."""
    tiles_p: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    TILES: tl.constexpr = CHUNK // TILE
    program = tl.program_id(0)
    p = program % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    batch, place, head, group, _ = _place(program // tiles_p, heads, per_group, chunks * TILES, TILE)
    chunk, tile = place // TILES, place % TILES
    first = chunk.to(tl.int64) * CHUNK
    values += batch * v_b + first * v_t + head * v_h
    row_maps += batch * r_b + first * r_t + group * r_g
    column_maps += batch * c_b + first * c_t + group * c_g
    decays += (batch * heads + head) * 3 * padded + first
    index += batch * padded + first
    states += ((batch * chunks + chunk) * heads + head) * (P * N)
    left = length - first
    row = tile * TILE + tl.arange(0, TILE)
    sums = tl.zeros([TILE, BLOCK_P], decays.dtype.element_ty)
    for begin in range(0, N, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        row_map = _tile(row_maps, row, r_t, left, n, r_n, N, PRECISION)
        sums = dot(row_map, _tile(states, n, 1, N, p, N, P, PRECISION), sums, PRECISION)
    FORWARD: tl.constexpr = not MIRRORED  # pyright: ignore[reportAssignmentType]
    sums *= _to_edge(decays, index, row, padded, chunk, FORWARD, HAS_STARTS, CHUNK)[:, None]
    for other in range(tile if MIRRORED else 0, TILES if MIRRORED else tile + 1):
        column = other * TILE + tl.arange(0, TILE)
        weights = _products(
            row_maps, column_maps, row, column, r_t, r_n, c_t, c_n, left, sums.dtype, N, BLOCK_N, PRECISION
        )  # fmt: skip
        weights *= _between(decays, index, row, column, padded, MIRRORED, HAS_STARTS)
        if not MIRRORED:
            weights *= tl.load(decays + column)[None, :]
        sums = dot(weights, _tile(values, column, v_t, left, p, v_p, P, PRECISION), sums, PRECISION)
    if MIRRORED:
        sums *= tl.load(decays + row)[:, None]
    result += ((batch * length + first + row[:, None]) * heads + head) * P + p[None, :]
    tl.store(result, sums.to(result.dtype.element_ty), mask=(row < left)[:, None] & (p < P)[None, :])


@triton.jit
def map_gradients(
    row_values, column_values, row_maps, column_maps, decays, index, states, result, across,
    u_b, u_t, u_h, u_p, v_b, v_t, v_h, v_p, r_b, r_t, r_g, r_n, c_b, c_t, c_g, c_n,
    length, padded, batches, heads, per_group, chunks, splits,
    MIRRORED: tl.constexpr, HAS_STARTS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A split's share of dC = Z B + start o (dY S), Z = (dY X^T) o L summed over its heads; MIRRORED: of
    dB = Z^T C + end o (X R). And ``across`` of each head, the products of the second term, before the factor dt, with
    C or MIRRORED with B, a tile of N each.
    """
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    TILES: tl.constexpr = CHUNK // TILE
    FORWARD: tl.constexpr = not MIRRORED  # pyright: ignore[reportAssignmentType]
    groups = heads // per_group
    program = tl.program_id(0)
    tile_n, tile, split = program % tiles_n, program // tiles_n % TILES, program // (tiles_n * TILES) % splits
    batch, chunk, group, _, first = _place(program // (tiles_n * TILES * splits), groups, 1, chunks, CHUNK)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tile * TILE + tl.arange(0, TILE)
    row_values += batch * u_b + first * u_t
    column_values += batch * v_b + first * v_t
    row_maps += batch * r_b + first * r_t + group * r_g
    column_maps += batch * c_b + first * c_t + group * c_g
    decays += batch * heads * 3 * padded + first
    index += batch * padded + first
    states += (batch * chunks + chunk) * heads * P * N
    across += (tile_n * batches + batch) * heads * padded + first
    left = length - first
    share = tl.cdiv(per_group, splits)
    begin_head = group * per_group + split * share
    end_head = tl.minimum(begin_head + share, (group + 1) * per_group)
    sums = tl.zeros([TILE, BLOCK_N], decays.dtype.element_ty)
    for other in range(tile if MIRRORED else 0, TILES if MIRRORED else tile + 1):
        column = other * TILE + tl.arange(0, TILE)
        Z = tl.zeros([TILE, TILE], sums.dtype)
        for head in range(begin_head, end_head):
            decay = decays + head * 3 * padded
            part = _products(
                row_values + head * u_h, column_values + head * v_h, row, column, u_t, u_p, v_t, v_p, left,
                sums.dtype, P, BLOCK_P, PRECISION,
            )  # fmt: skip
            part *= _between(decay, index, row, column, padded, MIRRORED, HAS_STARTS)
            if MIRRORED:
                Z += part * tl.load(decay + row)[:, None]
            else:
                Z += part * tl.load(decay + column)[None, :]
        sums = dot(Z, _tile(column_maps, column, c_t, left, n, c_n, N, PRECISION), sums, PRECISION)
    for head in range(begin_head, end_head):
        part = tl.zeros([TILE, BLOCK_N], sums.dtype)
        for begin in range(0, P, BLOCK_P):
            p = begin + tl.arange(0, BLOCK_P)
            row_value = _tile(row_values + head * u_h, row, u_t, left, p, u_p, P, PRECISION)
            state = _tile(states + head * (P * N), p, N, P, n, 1, N, PRECISION)
            part = accurate_dot(row_value, state, part, PRECISION)
        decay = decays + head * 3 * padded
        part *= _to_edge(decay, index, row, padded, chunk, FORWARD, HAS_STARTS, CHUNK)[:, None]
        row_map = _tile(row_maps, row, r_t, left, n, r_n, N, PRECISION)
        tl.store(across + head * padded + row, tl.sum(part * row_map, 1))
        if MIRRORED:
            part *= tl.load(decay + row)[:, None]
        sums += part
    result += (((split * batches + batch) * length + first + row[:, None]) * groups + group) * N + n[None, :]
    tl.store(result, sums, mask=(row < left)[:, None] & (n < N)[None, :])


@triton.jit
def crossings(
    row_values, column_values, row_maps, column_maps, decays, index, direct, crossing,
    u_b, u_t, u_h, u_p, v_b, v_t, v_h, v_p, r_b, r_t, r_g, r_n, c_b, c_t, c_g, c_n,
    length, padded, batches, heads, per_group, chunks,
    HAS_STARTS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of W^T = (X dY^T) o (B C^T) o L^T, whose rows are earlier than its columns: ``direct``, the sums over a tile of
    columns without the factor dt, and ``crossing`` of step t, those over i >= t > j, j in one tile and i in t's."""
    TILES: tl.constexpr = CHUNK // TILE
    batch, place, head, group, _ = _place(tl.program_id(0), heads, per_group, chunks * TILES, TILE)
    chunk, tile = place // TILES, place % TILES
    first = chunk.to(tl.int64) * CHUNK
    row_values += batch * u_b + first * u_t + head * u_h
    column_values += batch * v_b + first * v_t + head * v_h
    row_maps += batch * r_b + first * r_t + group * r_g
    column_maps += batch * c_b + first * c_t + group * c_g
    decays += (batch * heads + head) * 3 * padded + first
    index += batch * padded + first
    direct += head * padded + first
    crossing += ((tile * batches + batch) * heads + head) * padded + first
    left = length - first
    row = tile * TILE + tl.arange(0, TILE)
    for other in range(tile, TILES):
        column = other * TILE + tl.arange(0, TILE)
        W = _products(
            row_values, column_values, row, column, u_t, u_p, v_t, v_p, left,
            decays.dtype.element_ty, P, BLOCK_P, PRECISION,
        )  # fmt: skip
        W *= _products(
            row_maps, column_maps, row, column, r_t, r_n, c_t, c_n, left, W.dtype, N, BLOCK_N, PRECISION
        )  # fmt: skip
        W *= _between(decays, index, row, column, padded, True, HAS_STARTS)  # pyright: ignore[reportArgumentType]
        tl.store(direct + (other * batches + batch) * heads * padded + row, tl.sum(W, 1))
        W *= tl.load(decays + row)[:, None]
        before = (row[None, :] < column[:, None]).to(W.dtype)
        passing = accurate_dot(before, W, tl.zeros([TILE, TILE], W.dtype), PRECISION)
        tl.store(crossing + column, tl.sum(tl.where(column[:, None] <= column[None, :], passing, 0.0), 1))


@triton.jit
def decay_gradients(
    decays, A, direct, crossing, rows_across, columns_across, products, ddt, dA,
    padded, batches, heads, chunks, tiles_n, blocks, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The gradient of the log decay of step t, the sum of all that decays by it (no differences: what a huge decay
    has extinguished adds exact zeros), and from that those of dt and A."""
    TILES: tl.constexpr = CHUNK // TILE
    program = tl.program_id(0)
    head, chunk, batch = program % heads, program // heads % chunks, (program // heads // chunks).to(tl.int64)
    t = tl.arange(0, CHUNK)
    first = chunk.to(tl.int64) * CHUNK
    row = head * padded + first + t
    step = tl.load(decays + (batch * heads + head) * 3 * padded + first + t)
    wide = step.to(tl.float64)
    dlog, from_start, from_end = tl.zeros_like(wide), tl.zeros_like(wide), tl.zeros_like(wide)
    for tile in range(tiles_n):
        place = (tile * batches + batch) * heads * padded + row
        from_start += tl.load(rows_across + place).to(tl.float64)
        from_end += tl.load(columns_across + place).to(tl.float64)
    gradient = from_end
    for tile in tl.static_range(TILES):  # pyright: ignore[reportGeneralTypeIssues]
        place = (tile * batches + batch) * heads * padded + row
        dlog += tl.load(crossing + place, mask=t // TILE >= tile, other=0.0).to(tl.float64)
        part = tl.load(direct + place, mask=t // TILE <= tile, other=0.0).to(tl.float64)
        gradient += part
        dlog += tl.where(t // TILE < tile, _sum_before(part * wide), 0.0)
    dlog += tl.cumsum(from_start, 0, reverse=True) + _sum_before(from_end * wide)
    products += ((batch * heads + head) * chunks + chunk) * blocks
    for block in range(blocks):
        dlog += tl.load(products + block).to(tl.float64)
    tl.store(ddt + batch * heads * padded + row, (dlog * tl.load(A + head).to(tl.float64) + gradient).to(step.dtype))
    tl.store(dA + (batch * heads + head) * chunks + chunk, tl.sum(dlog * wide, 0).to(step.dtype))


@triton.jit
def _sum_before(values):
    return tl.cumsum(values, 0) - values


@triton.jit
def dot(a, b, sums, PRECISION: tl.constexpr):
    """sums + a b: "bf16" rounds the operands to bfloat16, "rounded" the same for the interpreter, which multiplies
    bfloat16 as integers; the others are precisions of tl.dot, "ieee" for float64 too."""
    if PRECISION == "bf16":
        result = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), sums)
    elif PRECISION == "rounded":
        a, b = a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32)
        result = tl.dot(a, b, sums, input_precision="ieee")
    else:
        result = tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)
    return result


@triton.jit
def accurate_dot(a, b, sums, PRECISION: tl.constexpr):
    """sums + a b to the precision of sums; a holds inputs, which PRECISION takes as they are, b computed numbers."""
    if PRECISION == "bf16" or PRECISION == "rounded":  # three bfloat16 hold the 24 bits of a float32
        high = b.to(tl.bfloat16)
        rest = b - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        sums = dot(a, rest - middle.to(tl.float32), sums, PRECISION)
        result = dot(a, high, dot(a, middle, sums, PRECISION), PRECISION)
    elif PRECISION == "tf32":
        result = dot(a, b, sums, "tf32x3")  # pyright: ignore[reportArgumentType]
    else:
        result = dot(a, b, sums, PRECISION)
    return result


@triton.jit
def _place(program, heads, per_group, chunks, CHUNK: tl.constexpr):
    """Batch, chunk, head, its group, and the first step of the chunk; heads side by side share maps in the cache."""
    head = program % heads
    chunk = program // heads % chunks
    batch = (program // heads // chunks).to(tl.int64)
    return batch, chunk, head.to(tl.int64), (head // per_group).to(tl.int64), chunk.to(tl.int64) * CHUNK


@triton.jit
def _tile(
    pointer, row, row_stride, row_count, column, column_stride, column_count, PRECISION: tl.constexpr
):  # fmt: skip
    """Rows by columns, zero past the counts, in a dtype that products take."""
    exists = (row < row_count)[:, None] & (column < column_count)[None, :]
    offsets = row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    values = tl.load(pointer + offsets, mask=exists, other=0.0)
    if PRECISION != "bf16" and values.dtype != tl.float64:
        values = values.to(tl.float32)
    return values


@triton.jit
def _products(
    rows, columns, row, column, r_t, r_d, c_t, c_d, left,
    dtype: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The inner products over D of every row with every column."""
    sums = tl.zeros([row.shape[0], column.shape[0]], dtype)
    for begin in range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        operand = _tile(rows, row, r_t, left, d, r_d, D, PRECISION)
        sums = dot(operand, _tile(columns, d, c_d, D, column, c_t, left, PRECISION), sums, PRECISION)
    return sums


@triton.jit
def _between(decays, index, row, column, padded, MIRRORED: tl.constexpr, HAS_STARTS: tl.constexpr):
    """L[row, column], MIRRORED: L[column, row]; L[i, j] = exp(total[i] - total[j]) for j <= i in a sequence, else 0."""
    high = tl.load(decays + padded + row)[:, None] - tl.load(decays + padded + column)[None, :]
    low = tl.load(decays + 2 * padded + row)[:, None] - tl.load(decays + 2 * padded + column)[None, :]
    exponent = -(high + low) if MIRRORED else high + low
    seen = row[:, None] <= column[None, :] if MIRRORED else row[:, None] >= column[None, :]
    if HAS_STARTS:
        seen = seen & (tl.load(index + row)[:, None] == tl.load(index + column)[None, :])
    return tl.exp(tl.where(seen, exponent, -float("inf")))


@triton.jit
def _to_edge(decays, index, row, padded, chunk, START: tl.constexpr, HAS_STARTS: tl.constexpr, CHUNK: tl.constexpr):
    """START: exp(total), else exp(total[last] - total); zero where that edge of the chunk is in another sequence."""
    high, low = tl.load(decays + padded + row), tl.load(decays + 2 * padded + row)
    if START:
        exponent = high + low
    else:
        last = decays + padded + CHUNK - 1
        exponent = (tl.load(last) - high) + (tl.load(last + padded) - low)
    if HAS_STARTS:
        edge = tl.load(index - 1, mask=chunk > 0, other=0) if START else tl.load(index + CHUNK - 1)
        exponent = tl.where(tl.load(index + row) == edge, exponent, -float("inf"))
    return tl.exp(exponent)
