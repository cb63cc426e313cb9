"""The Triton kernels of the selective scan; ``triton.py`` launches them.

SKIP, GATE and BIAS say whether there are D, z and dt_bias. Offsets are int64.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1 + small)


@triton.jit
def _softplus(x):
    """log(1 + e^x), with log(1 + u) = 2 artanh(u / (2 + u)) by its series, to the precision of u however small; x
    itself above 20, as in torch."""
    u = tl.exp(-tl.abs(x))
    s = u / (2 + u)
    total = tl.zeros_like(x)
    for power in tl.static_range(33, 0, -2):  # pyright: ignore[reportGeneralTypeIssues]  (to float64)
        total = total * (s * s) + 1 / power
    return tl.where(x > 20, x, tl.maximum(x, 0.0) + 2 * s * total)


@triton.jit
def _of_channels(pointer, d, exists, like, GIVEN: tl.constexpr):
    """One number a channel, zeros where there are none."""
    values = tl.zeros([d.shape[0]], like.dtype)
    if GIVEN:
        values = tl.load(pointer + d, mask=exists, other=0.0).to(like.dtype)
    return values


@triton.jit
def _ungated(dy_here, z_here, exists, like, GATE: tl.constexpr):
    """The gradient before the gate."""
    dout = tl.load(dy_here, mask=exists, other=0.0).to(like.dtype)
    if GATE:
        gate = tl.load(z_here, mask=exists, other=0.0).to(like.dtype)
        dout *= gate * _sigmoid(gate)
    return dout


@triton.jit
def _advance(
    h, rate, bias, x_here, dt_here, B_here, starts_here, step, exists, in_state,
    HAS_STARTS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One step: decay and next state (STATE, CHANNELS). Where ``step`` is false the step size is 0: nothing changes."""
    exists, in_state = tl.where(step, exists, False), tl.where(step, in_state, False)
    x = tl.load(x_here, mask=exists, other=0.0).to(h.dtype)
    dt = tl.load(dt_here, mask=exists, other=0.0).to(h.dtype) + bias
    if SOFTPLUS:
        dt = _softplus(dt)
    dt = tl.where(exists, dt, 0.0)
    B = tl.load(B_here, mask=in_state, other=0.0).to(h.dtype)
    decay = tl.exp(dt[None, :] * rate)
    if HAS_STARTS:
        decay = tl.where(tl.load(starts_here, mask=step, other=0) != 0, 0.0, decay)
    return decay, decay * h + (dt * x)[None, :] * B[:, None]


@triton.jit
def summaries(
    x, dt, A, B, C, D, dt_bias, z, starts,
    x_b, x_t, x_d, dt_b, dt_t, dt_d, B_b, B_t, B_g, B_n, C_b, C_t, C_g, C_n, z_b, z_t, z_d,
    length, dim, groups, blocks, chunks,
    dy, dy_b, dy_t, dy_d, P, S, R,
    HAS_STARTS: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr, N: tl.constexpr, STATE: tl.constexpr, CHANNELS: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """P: product of a chunk's decays; S: its state from zero; R: the gradient its outputs give the state before it."""
    batch, chunk, first, stop, group, _block, d, exists = _place(length, dim, groups, blocks, chunks, CHUNK, CHANNELS)
    n = tl.arange(0, STATE)
    in_state = n < N
    tile, in_tile = n[:, None] * dim + d[None, :], in_state[:, None] & exists[None, :]
    rate = tl.load(A + tile, mask=in_tile, other=0.0).to(P.dtype.element_ty)
    bias = _of_channels(dt_bias, d, exists, rate, BIAS)
    product = tl.full((STATE, CHANNELS), 1.0, P.dtype.element_ty)
    state = tl.zeros((STATE, CHANNELS), P.dtype.element_ty)
    gradient = tl.zeros((STATE, CHANNELS), P.dtype.element_ty)
    for t in range(first, stop):
        decay, state = _advance(
            state, rate, bias, x + batch * x_b + t * x_t + d * x_d, dt + batch * dt_b + t * dt_t + d * dt_d,
            B + batch * B_b + t * B_t + group * B_g + n * B_n, starts + batch * length + t,
            True, exists, in_state, HAS_STARTS, SOFTPLUS,
        )  # fmt: skip
        product *= decay
        if BACKWARD:
            c = tl.load(C + batch * C_b + t * C_t + group * C_g + n * C_n, mask=in_state, other=0.0)
            z_here = z + batch * z_b + t * z_t + d * z_d if GATE else dy
            dout = _ungated(dy + batch * dy_b + t * dy_t + d * dy_d, z_here, exists, product, GATE)
            gradient += product * c.to(product.dtype)[:, None] * dout[None, :]
    here = (batch * chunks + chunk) * N * dim + tile
    tl.store(P + here, product, mask=in_tile)
    tl.store(S + here, state, mask=in_tile)
    if BACKWARD:
        tl.store(R + here, gradient, mask=in_tile)


@triton.jit
def carry(P, S, initial, before, last, i_b, i_d, i_n, chunks, dim, size, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
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
def outputs(
    x, dt, A, B, C, D, dt_bias, z, starts,
    x_b, x_t, x_d, dt_b, dt_t, dt_d, B_b, B_t, B_g, B_n, C_b, C_t, C_g, C_n, z_b, z_t, z_d,
    length, dim, groups, blocks, chunks,
    before, y, final,
    HAS_STARTS: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr, N: tl.constexpr, STATE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y of a chunk from the state before it; the last chunk leaves the final state."""
    batch, chunk, first, stop, group, _block, d, exists = _place(length, dim, groups, blocks, chunks, CHUNK, CHANNELS)
    n = tl.arange(0, STATE)
    in_state = n < N
    tile, in_tile = n[:, None] * dim + d[None, :], in_state[:, None] & exists[None, :]
    state = tl.load(before + (batch * chunks + chunk) * N * dim + tile, mask=in_tile, other=0.0)
    rate = tl.load(A + tile, mask=in_tile, other=0.0).to(state.dtype)
    bias, skip = _of_channels(dt_bias, d, exists, rate, BIAS), _of_channels(D, d, exists, rate, SKIP)
    for t in range(first, stop):
        _decay, state = _advance(
            state, rate, bias, x + batch * x_b + t * x_t + d * x_d, dt + batch * dt_b + t * dt_t + d * dt_d,
            B + batch * B_b + t * B_t + group * B_g + n * B_n, starts + batch * length + t,
            True, exists, in_state, HAS_STARTS, SOFTPLUS,
        )  # fmt: skip
        c = tl.load(C + batch * C_b + t * C_t + group * C_g + n * C_n, mask=in_state, other=0.0).to(state.dtype)
        out = tl.sum(state * c[:, None], axis=0)
        if SKIP:
            out += skip * tl.load(x + batch * x_b + t * x_t + d * x_d, mask=exists, other=0.0).to(state.dtype)
        if GATE:
            gate = tl.load(z + batch * z_b + t * z_t + d * z_d, mask=exists, other=0.0).to(state.dtype)
            out *= gate * _sigmoid(gate)
        tl.store(y + (batch * length + t) * dim + d, out.to(y.dtype.element_ty), mask=exists)
    if chunk == chunks - 1:
        tl.store(final + batch * N * dim + d[None, :] * N + n[:, None], state, mask=in_tile)


@triton.jit
def _retreat(
    dh, da, dskip, dbias, decay, before, after, rate, skip, bias, x_here, dt_here, B_here, C_here, dy_here, z_here,
    dx_here, ddt_here, dB_here, dC_here, dz_here, step, exists, in_state, GATE: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One step back: the gradient of the state after it becomes that of the state before; the step's own are stored,
    those of A, D and dt_bias are added up."""
    exists, in_state = tl.where(step, exists, False), tl.where(step, in_state, False)
    x = tl.load(x_here, mask=exists, other=0.0).to(rate.dtype)
    dt = tl.load(dt_here, mask=exists, other=0.0).to(rate.dtype) + bias
    slope = tl.where(exists, 1.0, 0.0).to(rate.dtype)
    if SOFTPLUS:
        slope = tl.where(dt > 20, slope, slope * _sigmoid(dt))
        dt = _softplus(dt)
    dt = tl.where(exists, dt, 0.0)
    dout = _ungated(dy_here, z_here, exists, rate, GATE)
    B = tl.load(B_here, mask=in_state, other=0.0).to(rate.dtype)
    C = tl.load(C_here, mask=in_state, other=0.0).to(rate.dtype)
    dh += C[:, None] * dout[None, :]
    tl.store(dC_here, tl.sum(after * dout[None, :], axis=1), mask=in_state)
    tl.store(dB_here, tl.sum(dh * (dt * x)[None, :], axis=1), mask=in_state)
    dinput = tl.sum(dh * B[:, None], axis=0)
    dh *= decay
    dlog = dh * before  # of the logarithm of the decay, dt A
    ddt = (tl.sum(dlog * rate, axis=0) + dinput * x) * slope
    tl.store(dx_here, (dinput * dt + skip * dout).to(dx_here.dtype.element_ty), mask=exists)
    tl.store(ddt_here, ddt.to(ddt_here.dtype.element_ty), mask=exists)
    if GATE:
        dy, gate = tl.load(dy_here, mask=exists, other=0.0), tl.load(z_here, mask=exists, other=0.0).to(rate.dtype)
        sigmoid = _sigmoid(gate)
        dgate = dy.to(rate.dtype) * (tl.sum(after * C[:, None], axis=0) + skip * x)
        tl.store(dz_here, (dgate * sigmoid * (1 + gate * (1 - sigmoid))).to(dz_here.dtype.element_ty), mask=exists)
    return dh, da + dlog * dt[None, :], dskip + dout * x, dbias + ddt


@triton.jit
def gradients(
    x, dt, A, B, C, D, dt_bias, z, starts,
    x_b, x_t, x_d, dt_b, dt_t, dt_d, B_b, B_t, B_g, B_n, C_b, C_t, C_g, C_n, z_b, z_t, z_d,
    length, dim, groups, blocks, chunks,
    dy, dy_b, dy_t, dy_d, before, after, dx, ddt, dA, dB, dC, dD, dz, dbias,
    HAS_STARTS: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr, N: tl.constexpr, STATE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients within a chunk: ``before`` is the state before it, ``after`` the gradient of the state after it.

    dA (B, chunks, N, D), dD and dbias (B, chunks, D) are sums of a chunk, dB and dC (blocks, B, T, G, N) of a block of
    channels.
    """
    batch, chunk, first, stop, group, block, d, exists = _place(length, dim, groups, blocks, chunks, CHUNK, CHANNELS)
    n = tl.arange(0, STATE)
    in_state = n < N
    tile, in_tile = n[:, None] * dim + d[None, :], in_state[:, None] & exists[None, :]
    here = (batch * chunks + chunk) * N * dim + tile
    boundary = tl.load(before + here, mask=in_tile, other=0.0)
    dh = tl.load(after + here, mask=in_tile, other=0.0)
    rate = tl.load(A + tile, mask=in_tile, other=0.0).to(boundary.dtype)
    bias, skip = _of_channels(dt_bias, d, exists, rate, BIAS), _of_channels(D, d, exists, rate, SKIP)
    da = tl.zeros((STATE, CHANNELS), boundary.dtype)
    dd, db = tl.zeros((CHANNELS,), boundary.dtype), tl.zeros((CHANNELS,), boundary.dtype)

    x += batch * x_b + d * x_d
    dt += batch * dt_b + d * dt_d
    dy += batch * dy_b + d * dy_d
    B += batch * B_b + group * B_g + n * B_n
    C += batch * C_b + group * C_g + n * C_n
    starts += batch * length
    dx += batch * length * dim + d
    ddt += batch * length * dim + d
    if GATE:
        z += batch * z_b + d * z_d
        dz += batch * length * dim + d
    else:
        z, dz = dy, dx
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
                h0,
                rate,
                bias,
                x + t * x_t,
                dt + t * dt_t,
                B + t * B_t,
                starts + t,
                True,
                exists,
                in_state,
                HAS_STARTS,
                SOFTPLUS,
            )
        decay0, h1 = _advance(
            h0,
            rate,
            bias,
            x + t0 * x_t,
            dt + t0 * dt_t,
            B + t0 * B_t,
            starts + t0,
            True,
            exists,
            in_state,
            HAS_STARTS,
            SOFTPLUS,
        )
        decay1, h2 = _advance(
            h1,
            rate,
            bias,
            x + t1 * x_t,
            dt + t1 * dt_t,
            B + t1 * B_t,
            starts + t1,
            t1 < stop,
            exists,
            in_state,
            HAS_STARTS,
            SOFTPLUS,
        )
        decay2, h3 = _advance(
            h2,
            rate,
            bias,
            x + t2 * x_t,
            dt + t2 * dt_t,
            B + t2 * B_t,
            starts + t2,
            t2 < stop,
            exists,
            in_state,
            HAS_STARTS,
            SOFTPLUS,
        )
        decay3, h4 = _advance(
            h3,
            rate,
            bias,
            x + t3 * x_t,
            dt + t3 * dt_t,
            B + t3 * B_t,
            starts + t3,
            t3 < stop,
            exists,
            in_state,
            HAS_STARTS,
            SOFTPLUS,
        )
        dh, da, dd, db = _retreat(
            dh, da, dd, db, decay3, h3, h4, rate, skip, bias, x + t3 * x_t, dt + t3 * dt_t, B + t3 * B_t, C + t3 * C_t,
            dy + t3 * dy_t, z + t3 * z_t, dx + t3 * dim, ddt + t3 * dim, dB + t3 * row, dC + t3 * row, dz + t3 * dim,
            t3 < stop, exists, in_state, GATE, SOFTPLUS,
        )  # fmt: skip
        dh, da, dd, db = _retreat(
            dh, da, dd, db, decay2, h2, h3, rate, skip, bias, x + t2 * x_t, dt + t2 * dt_t, B + t2 * B_t, C + t2 * C_t,
            dy + t2 * dy_t, z + t2 * z_t, dx + t2 * dim, ddt + t2 * dim, dB + t2 * row, dC + t2 * row, dz + t2 * dim,
            t2 < stop, exists, in_state, GATE, SOFTPLUS,
        )  # fmt: skip
        dh, da, dd, db = _retreat(
            dh, da, dd, db, decay1, h1, h2, rate, skip, bias, x + t1 * x_t, dt + t1 * dt_t, B + t1 * B_t, C + t1 * C_t,
            dy + t1 * dy_t, z + t1 * z_t, dx + t1 * dim, ddt + t1 * dim, dB + t1 * row, dC + t1 * row, dz + t1 * dim,
            t1 < stop, exists, in_state, GATE, SOFTPLUS,
        )  # fmt: skip
        dh, da, dd, db = _retreat(
            dh, da, dd, db, decay0, h0, h1, rate, skip, bias, x + t0 * x_t, dt + t0 * dt_t, B + t0 * B_t, C + t0 * C_t,
            dy + t0 * dy_t, z + t0 * z_t, dx + t0 * dim, ddt + t0 * dim, dB + t0 * row, dC + t0 * row, dz + t0 * dim,
            True, exists, in_state, GATE, SOFTPLUS,
        )  # fmt: skip
    tl.store(dA + here, da, mask=in_tile)
    if SKIP:
        tl.store(dD + (batch * chunks + chunk) * dim + d, dd, mask=exists)
    if BIAS:
        tl.store(dbias + (batch * chunks + chunk) * dim + d, db, mask=exists)
