"""Taylor linear attention in Triton: quadratic within a chunk, by the features in registers between chunks.

Rows of one side (queries) meet columns of the other (keys); the gradients of k and v are the same sums with the sides
exchanged and time reversed. ``_carry`` walks over the chunks and stores the state (or its gradient) that enters each,
for a tile of features and values a program; ``_sums`` and ``_gradients`` then take all chunks at once. Values a carry
a weight w each, the last column of the state: v and ones on the side of k, the gradients of numerator and sum on that
of q. The features of a tile of steps are made where they are needed, from K numbers a step, and never stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.triton_support import block_sizes

SIZES = {"steps": 64, "features": 32, "values": 64, "warps": 4}  # of a chunk at most, half of it in float64; of a tile


def forward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments as the reference, of any floating dtype and strides; computed in the dtype of ``state``."""
    launch = _Launch(q, v, state, starts, chunk_size)
    ones = _ones(v, state)
    before, final = launch.carry(k, v, ones, state, reverse=False)
    numerator, total = launch.sums(q, k, v, ones, before, reverse=False)
    return numerator, total, final


def backward(
    dnumerator: Tensor,
    dtotal: Tensor,
    dstate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and the initial state; every sum in a fixed order."""
    launch = _Launch(q, v, state, starts, chunk_size)
    ones = _ones(v, state)
    before, _ = launch.carry(k, v, ones, state, reverse=False)
    dq = launch.gradients(q, k, dnumerator, dtotal, v, ones, before, reverse=False)
    del before
    after, dinitial = launch.carry(q, dnumerator, dtotal, dstate, reverse=True)
    dk = launch.gradients(k, q, v, ones, dnumerator, dtotal, after, reverse=True)
    dv, _ = launch.sums(k, q, dnumerator, dtotal, after, reverse=True)
    return dq, dk, dv, dinitial


def _ones(v: Tensor, state: Tensor) -> Tensor:
    return state.new_ones(()).expand(v.shape[:3])


class _Launch:
    """The kernels for one call, with the arguments that all of them share."""

    def __init__(self, q: Tensor, v: Tensor, state: Tensor, starts: Tensor | None, chunk_size: int):
        length, key_dim = q.shape[1], q.shape[3]
        self.shape, self.state = v.shape, state
        sizes = block_sizes("taylor_attention", f"K{key_dim}", q.device, SIZES)
        most = sizes["steps"] * 4 // state.element_size()
        steps = max(16, min(most, triton.next_power_of_2(min(chunk_size, length))))
        values = max(16, min(sizes["values"], triton.next_power_of_2(v.shape[-1])))
        self.chunks, self.value_tiles = triton.cdiv(length, steps), triton.cdiv(v.shape[-1], values)
        self.feature_tiles = triton.cdiv(state.shape[2], sizes["features"])
        pairs = torch.triu_indices(key_dim + 1, key_dim + 1, dtype=torch.int32, device=q.device)
        segments = pairs if starts is None else starts.cumsum(1, dtype=torch.int32)
        self.arguments = segments, pairs, length, q.shape[2], state.shape[2], self.chunks
        self.options = {
            "K": key_dim, "V": v.shape[-1], "PACKED": starts is not None, "STEPS": steps,
            "KEYS": max(16, triton.next_power_of_2(key_dim)), "FEATURES": sizes["features"], "VALUES": values,
            "ROOT": key_dim**-0.25, "SCALE": key_dim**-0.5, "PRECISION": _precision(state), "num_warps": sizes["warps"],
            "enable_fp_fusion": True,
        }  # fmt: skip

    def carry(self, x: Tensor, a: Tensor, w: Tensor, initial: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        """The state that enters each chunk, (B, H, chunks, D, V + 1), from ``initial``; and that leaves the last."""
        batch, heads, *size = self.state.shape
        entering = self.state.new_empty(batch, heads, self.chunks, *size)
        last = self.state.new_empty(self.state.shape)
        self._run(_carry, self.feature_tiles * self.value_tiles, (x, a, w, initial), (entering, last), reverse)
        return entering, last

    def sums(
        self, x: Tensor, z: Tensor, a: Tensor, w: Tensor, entering: Tensor, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """For each row x the sums, over the columns z that it sees, of weight(x, z) times a and times w."""
        output, total = self.state.new_empty(self.shape), self.state.new_empty(self.shape[:3])
        self._run(_sums, self.value_tiles * self.chunks, (x, z, a, w), (entering, output, total), reverse)
        return output, total

    def gradients(
        self, x: Tensor, z: Tensor, a: Tensor, w: Tensor, b: Tensor, u: Tensor, entering: Tensor, reverse: bool
    ) -> Tensor:
        """Of the rows x, where the gradient of weight(x, z) is (a, w) of the row times (b, u) of the column."""
        dx = self.state.new_empty(x.shape)
        self._run(_gradients, self.chunks, (x, z, a, w, b, u), (entering, dx), reverse)
        return dx

    def _run(self, kernel, programs: int, strided: tuple[Tensor, ...], contiguous: tuple[Tensor, ...], reverse: bool):
        strides = (stride for tensor in strided for stride in tensor.stride())
        batch, heads = self.state.shape[:2]
        kernel[(programs * batch * heads,)](
            *strided, *contiguous, *strides, *self.arguments, **self.options, REVERSE=reverse
        )


def _precision(state: Tensor) -> str:
    """Of matrix products: float32 accuracy, on tensor cores where NVIDIA's have it for float32."""
    return "ieee" if state.dtype == torch.float64 or torch.version.hip else "tf32x3"


@triton.jit
def _tile(x, x_row, x_column, row, column, in_row, in_column, DTYPE: tl.constexpr):
    """A tile of a matrix, zero outside."""
    here = x + row[:, None] * x_row + column[None, :] * x_column
    return tl.load(here, mask=in_row[:, None] & in_column[None, :], other=0.0).to(DTYPE)


@triton.jit
def _factor(x, x_row, x_column, row, index, in_row, ROOT: tl.constexpr, DTYPE: tl.constexpr):
    """Of each row of x its numbers ``index`` of (1, x ROOT)."""
    here = x + row[:, None] * x_row + (index - 1)[None, :] * x_column
    found = tl.load(here, mask=in_row[:, None] & (index > 0)[None, :], other=0.0).to(DTYPE)
    return tl.where((index > 0)[None, :], found * ROOT, 1.0)


@triton.jit
def _features(x, x_row, x_column, row, i, j, factor, in_row, ROOT: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of the features of the rows, zero for rows that are not there."""
    left = _factor(x, x_row, x_column, row, i, in_row, ROOT, DTYPE)
    right = _factor(x, x_row, x_column, row, j, in_row, ROOT, DTYPE)
    return tl.where(in_row[:, None], left * right * factor[None, :], 0.0)


@triton.jit
def _pair(pairs, feature, features, DTYPE: tl.constexpr):
    """Which two numbers of (1, x) make a feature, and the factor of their product; 0 for what is not a feature."""
    i = tl.load(pairs + feature, mask=feature < features, other=0)
    j = tl.load(pairs + features + feature, mask=feature < features, other=0)
    factor = tl.where((i == j) & (i > 0), 0.7071067811865476, tl.full(i.shape, 1.0, DTYPE))
    return i, j, tl.where(feature < features, factor, 0.0)


@triton.jit
def _boundary(segments, chunk, length, STEPS: tl.constexpr, REVERSE: tl.constexpr):
    """The sequence before the chunk and the one at its end: where the state enters and leaves; exchanged in reverse."""
    before = tl.load(segments + tl.maximum(chunk * STEPS - 1, 0))
    last = tl.load(segments + tl.minimum(chunk * STEPS + STEPS, length) - 1)
    if REVERSE:
        return last, before
    else:
        return before, last


@triton.jit
def _carry(
    x, a, w, initial, entering, last,
    x_b, x_t, x_h, x_k, a_b, a_t, a_h, a_v, w_b, w_t, w_h, s_b, s_h, s_d, s_v,
    segments, pairs, length, heads, features, chunks,
    K: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, STEPS: tl.constexpr, KEYS: tl.constexpr,
    FEATURES: tl.constexpr, VALUES: tl.constexpr, ROOT: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """A tile of the state over all chunks: it is stored, then gains phi(x) (a, w) of the chunk's steps."""
    DTYPE: tl.constexpr = entering.dtype.element_ty
    tiles_f = tl.cdiv(features, FEATURES)
    tiles_v: tl.constexpr = (V + VALUES - 1) // VALUES
    index = tl.program_id(0)
    tile_v = index // tiles_f % tiles_v
    sequence = (index // (tiles_f * tiles_v)).to(tl.int64)
    batch, head = sequence // heads, sequence % heads
    feature = index % tiles_f * FEATURES + tl.arange(0, FEATURES)
    value = tile_v * VALUES + tl.arange(0, VALUES)
    is_feature, is_value = feature < features, value < V
    i, j, factor = _pair(pairs, feature, features, DTYPE)
    x += batch * x_b + head * x_h
    a += batch * a_b + head * a_h
    w += batch * w_b + head * w_h
    initial += batch * s_b + head * s_h
    segments += batch * length
    tile = _tile(initial, s_d, s_v, feature, value, is_feature, is_value, DTYPE)
    column = tl.load(initial + feature * s_d + V * s_v, mask=is_feature, other=0.0).to(DTYPE)
    within = feature[:, None] * (V + 1) + value[None, :]
    for step in range(chunks):
        chunk = step
        if REVERSE:
            chunk = chunks - 1 - step
        here = entering + (sequence * chunks + chunk) * features * (V + 1)
        tl.store(here + within, tile, mask=is_feature[:, None] & is_value[None, :])
        tl.store(here + feature * (V + 1) + V, column, mask=tile_v * features + feature < features)
        t = (chunk * STEPS + tl.arange(0, STEPS)).to(tl.int64)
        leaves = t < length
        if PACKED:
            enter, leave = _boundary(segments, chunk, length, STEPS, REVERSE)
            leaves = leaves & (tl.load(segments + t, mask=leaves, other=-1) == leave)
            tile = tl.where(enter == leave, tile, 0.0)
            column = tl.where(enter == leave, column, 0.0)
        phi = _features(x, x_t, x_k, t, i, j, factor, leaves, ROOT, DTYPE)
        values = _tile(a, a_t, a_v, t, value, leaves, is_value, DTYPE)
        weights = tl.load(w + t * w_t, mask=leaves, other=0.0).to(DTYPE)
        tile += tl.dot(tl.trans(phi), values, input_precision=PRECISION, out_dtype=DTYPE)
        column += tl.sum(phi * weights[:, None], axis=0)
    last += sequence * features * (V + 1)
    tl.store(last + within, tile, mask=is_feature[:, None] & is_value[None, :])
    tl.store(last + feature * (V + 1) + V, column, mask=tile_v * features + feature < features)


@triton.jit
def _seen(t, exists, segments, PACKED: tl.constexpr, REVERSE: tl.constexpr):
    """(rows, columns) of a chunk: steps of the same sequence that the row sees, itself and those before (after) it."""
    seen = t[:, None] >= t[None, :]
    if REVERSE:
        seen = t[:, None] <= t[None, :]
    seen = seen & exists[:, None] & exists[None, :]
    if PACKED:
        segment = tl.load(segments + t, mask=exists, other=-1)
        seen = seen & (segment[:, None] == segment[None, :])
    return seen


@triton.jit
def _sums(
    x, z, a, w, entering, output, total,
    x_b, x_t, x_h, x_k, z_b, z_t, z_h, z_k, a_b, a_t, a_h, a_v, w_b, w_t, w_h,
    segments, pairs, length, heads, features, chunks,
    K: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, STEPS: tl.constexpr, KEYS: tl.constexpr,
    FEATURES: tl.constexpr, VALUES: tl.constexpr, ROOT: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """A tile of values of one chunk: within it by the weights, from the other chunks by the state that enters."""
    DTYPE: tl.constexpr = entering.dtype.element_ty
    tiles_v: tl.constexpr = (V + VALUES - 1) // VALUES
    index = tl.program_id(0)
    tile_v = index % tiles_v
    chunk = index // tiles_v % chunks
    sequence = (index // (tiles_v * chunks)).to(tl.int64)
    batch, head = sequence // heads, sequence % heads
    t = (chunk * STEPS + tl.arange(0, STEPS)).to(tl.int64)
    value = tile_v * VALUES + tl.arange(0, VALUES)
    key = tl.arange(0, KEYS)
    exists, is_value, is_key = t < length, value < V, key < K
    x += batch * x_b + head * x_h
    z += batch * z_b + head * z_h
    a += batch * a_b + head * a_h
    w += batch * w_b + head * w_h
    segments += batch * length
    entering += (sequence * chunks + chunk) * features * (V + 1)

    rows = _tile(x, x_t, x_k, t, key, exists, is_key, DTYPE)
    columns = _tile(z, z_t, z_k, t, key, exists, is_key, DTYPE)
    s = tl.dot(rows, tl.trans(columns), input_precision=PRECISION, out_dtype=DTYPE) * SCALE
    weight = tl.where(_seen(t, exists, segments, PACKED, REVERSE), 1.0 + s + 0.5 * s * s, 0.0)
    values = _tile(a, a_t, a_v, t, value, exists, is_value, DTYPE)
    weights = tl.load(w + t * w_t, mask=exists, other=0.0).to(DTYPE)
    result = tl.dot(weight, values, input_precision=PRECISION, out_dtype=DTYPE)
    sums = tl.sum(weight * weights[None, :], axis=1)

    enters = exists
    if PACKED:
        enter, _ = _boundary(segments, chunk, length, STEPS, REVERSE)
        enters = exists & (tl.load(segments + t, mask=exists, other=-1) == enter)
    for first in range(0, features, FEATURES):
        feature = first + tl.arange(0, FEATURES)
        is_feature = feature < features
        i, j, factor = _pair(pairs, feature, features, DTYPE)
        phi = _features(x, x_t, x_k, t, i, j, factor, enters, ROOT, DTYPE)
        tile = _tile(entering, V + 1, 1, feature, value, is_feature, is_value, DTYPE)
        column = tl.load(entering + feature * (V + 1) + V, mask=is_feature, other=0.0)
        result += tl.dot(phi, tile, input_precision=PRECISION, out_dtype=DTYPE)
        sums += tl.sum(phi * column[None, :], axis=1)
    step = (batch * length + t) * heads + head
    tl.store(output + step[:, None] * V + value[None, :], result, mask=exists[:, None] & is_value[None, :])
    tl.store(total + step, sums, mask=tile_v * length + t < length)


@triton.jit
def _gradients(
    x, z, a, w, b, u, entering, dx,
    x_b, x_t, x_h, x_k, z_b, z_t, z_h, z_k, a_b, a_t, a_h, a_v, w_b, w_t, w_h, b_b, b_t, b_h, b_v, u_b, u_t, u_h,
    segments, pairs, length, heads, features, chunks,
    K: tl.constexpr, V: tl.constexpr, PACKED: tl.constexpr, STEPS: tl.constexpr, KEYS: tl.constexpr,
    FEATURES: tl.constexpr, VALUES: tl.constexpr, ROOT: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Of the rows of one chunk: within it through the scores, from the other chunks through the features."""
    DTYPE: tl.constexpr = entering.dtype.element_ty
    index = tl.program_id(0)
    chunk = index % chunks
    sequence = (index // chunks).to(tl.int64)
    batch, head = sequence // heads, sequence % heads
    t = (chunk * STEPS + tl.arange(0, STEPS)).to(tl.int64)
    key = tl.arange(0, KEYS)
    exists, is_key = t < length, key < K
    x += batch * x_b + head * x_h
    z += batch * z_b + head * z_h
    a += batch * a_b + head * a_h
    w += batch * w_b + head * w_h
    b += batch * b_b + head * b_h
    u += batch * u_b + head * u_h
    segments += batch * length
    entering += (sequence * chunks + chunk) * features * (V + 1)

    weights = tl.load(w + t * w_t, mask=exists, other=0.0).to(DTYPE)
    others = tl.load(u + t * u_t, mask=exists, other=0.0).to(DTYPE)
    gradient = weights[:, None] * others[None, :]
    for first in range(0, V, VALUES):
        value = first + tl.arange(0, VALUES)
        mine = _tile(a, a_t, a_v, t, value, exists, value < V, DTYPE)
        other = _tile(b, b_t, b_v, t, value, exists, value < V, DTYPE)
        gradient += tl.dot(mine, tl.trans(other), input_precision=PRECISION, out_dtype=DTYPE)
    rows = _tile(x, x_t, x_k, t, key, exists, is_key, DTYPE)
    columns = _tile(z, z_t, z_k, t, key, exists, is_key, DTYPE)
    s = tl.dot(rows, tl.trans(columns), input_precision=PRECISION, out_dtype=DTYPE) * SCALE
    gradient = tl.where(_seen(t, exists, segments, PACKED, REVERSE), gradient * (1.0 + s) * SCALE, 0.0)
    result = tl.dot(gradient, columns, input_precision=PRECISION, out_dtype=DTYPE)

    enters = exists
    if PACKED:
        enter, _ = _boundary(segments, chunk, length, STEPS, REVERSE)
        enters = exists & (tl.load(segments + t, mask=exists, other=-1) == enter)
    for start in range(0, features, FEATURES):
        feature = start + tl.arange(0, FEATURES)
        is_feature = feature < features
        i, j, factor = _pair(pairs, feature, features, DTYPE)
        column = tl.load(entering + feature * (V + 1) + V, mask=is_feature, other=0.0)
        dphi = weights[:, None] * column[None, :]
        for first in range(0, V, VALUES):
            value = first + tl.arange(0, VALUES)
            mine = _tile(a, a_t, a_v, t, value, exists, value < V, DTYPE)
            tile = _tile(entering, V + 1, 1, feature, value, is_feature, value < V, DTYPE)
            dphi += tl.dot(mine, tl.trans(tile), input_precision=PRECISION, out_dtype=DTYPE)
        dphi = tl.where(enters[:, None], dphi * factor[None, :] * ROOT, 0.0)
        to_i = (i[:, None] == key[None, :] + 1).to(DTYPE)
        to_j = (j[:, None] == key[None, :] + 1).to(DTYPE)
        at_i = dphi * _factor(x, x_t, x_k, t, j, exists, ROOT, DTYPE)
        at_j = dphi * _factor(x, x_t, x_k, t, i, exists, ROOT, DTYPE)
        result += tl.dot(at_i, to_i, input_precision=PRECISION, out_dtype=DTYPE)
        result += tl.dot(at_j, to_j, input_precision=PRECISION, out_dtype=DTYPE)
    step = (batch * length + t) * heads + head
    tl.store(dx + step[:, None] * K + key[None, :], result, mask=exists[:, None] & is_key[None, :])
