"""Chunks in Triton, for linear attention and the delta rule: tiles, decays, attention matrices and outputs.

``_scores`` makes the attention matrix of each chunk, ``_combine`` the output from it and the state before the chunk
(and, transposed, the gradient of v). Decays are exponentials of sums over the very steps they span, as in ``chunks``:
sums of log decays are products with a matrix of zeros and ones, in full precision, and a decay per channel is split at
the boundary between two halves.
"""

# Triton reads constexpr arguments and slices that its annotations do not allow for.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common import chunks
from zoo.kernels.triton_support import block_sizes

DEFAULT = {"K": 64, "V": 64, "num_warps": 4, "num_stages": 1}
DEFAULT_VECTOR = {"K": 32, "V": 64, "num_warps": 4, "num_stages": 1}
SMALLEST_BLOCK, LARGEST_CHUNK = 16, 64
NONE, SCALAR, VECTOR = range(3)
LOWEST: tl.constexpr = tl.constexpr(chunks.LOWEST)
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


class ChunkLaunch:
    """The kernels ``_scores`` and ``_combine``, and the arguments that all kernels of such an operation share.

    Matrix products of float32 tiles are three TF32 products, one where inputs and results are bfloat16 (the states are
    float32 results always).
    """

    operation: str

    def __init__(self, direction, q, k, v, log_decay, state, starts, scale, chunk_size):
        self.batch, self.length, self.heads, self.key_dim = q.shape
        self.value_dim, self.dtype, self.device = v.shape[-1], state.dtype, q.device
        self.gate = NONE if log_decay is None else log_decay.dim() - 2
        self.log_decay = log_decay
        self.segments = None if starts is None else starts.cumsum(1, dtype=torch.int32)
        default = DEFAULT_VECTOR if self.gate == VECTOR else DEFAULT
        shape_class = f"{direction}_{('none', 'scalar', 'vector')[self.gate]}"
        sizes = block_sizes(self.operation, shape_class, self.device, default)
        self.chunk = block_size(min(chunk_size, self.length), LARGEST_CHUNK)
        self.key_block = block_size(self.key_dim, sizes["K"])
        self.value_block = block_size(self.value_dim, sizes["V"])
        self.chunks = triton.cdiv(self.length, self.chunk)
        self.key_blocks = triton.cdiv(self.key_dim, self.key_block)
        self.value_blocks = triton.cdiv(self.value_dim, self.value_block)
        strides = (0, 0, 0, 0) if log_decay is None else (*log_decay.stride(), 0)[:4]
        self.arguments = (log_decay, *strides, self.segments, self.length, self.heads, self.chunks)
        self.options = {
            "GATE": self.gate, "STARTS": starts is not None, "BT": self.chunk, "DTYPE": TYPES[self.dtype],
            "SCALE": scale, "num_warps": sizes["num_warps"], "num_stages": sizes["num_stages"],
        }  # fmt: skip
        self.exact = "ieee" if state.dtype == torch.float64 or torch.version.hip else "tf32x3"
        rounded = all(t is None or t.dtype == torch.bfloat16 for t in (q, k, v, log_decay))
        self.precision = "tf32" if rounded and self.exact == "tf32x3" else self.exact

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """scale q k^T with its decays: (B, H, chunks, steps, steps), lower triangular."""
        scores = q.new_empty(self.batch, self.heads, self.chunks, self.chunk, self.chunk, dtype=self.dtype)
        self._run(
            _scores, (self.batch * self.heads * self.chunks,), q, *q.stride(), k, *k.stride(), scores,
            self.key_dim, *self.arguments,
            PRECISION=self.precision, LEVELS=self.chunk.bit_length() - 1, BK=self.key_block,
        )  # fmt: skip
        return scores

    def combine(self, x, y, scores, states, reverse: bool, dtype: torch.dtype | None = None) -> Tensor:
        """scores y + scale x state, or the gradient of v: scores^T y + x state; in ``dtype``, that of y by default."""
        result = y.new_empty(y.shape, dtype=dtype)
        self._run(
            _combine, (self.batch * self.heads * self.chunks, self.value_blocks), x, *x.stride(), y, *y.stride(),
            scores, states, result, self.key_dim, self.value_dim, *self.arguments,
            PRECISION=self.precision, REVERSE=reverse, BK=self.key_block, BV=self.value_block,
        )  # fmt: skip
        return result

    def _run(self, kernel, grid: tuple[int, ...], *arguments, **options) -> None:
        with torch.cuda.device_of(arguments[0]):
            kernel[grid](*arguments, **options, **self.options)


def block_size(size: int, largest: int) -> int:
    """The power of two that covers ``size``, between the smallest a product takes and ``largest``."""
    return max(SMALLEST_BLOCK, min(triton.next_power_of_2(size), largest))


@triton.jit
def tile(pointer, rows, columns, stride_t, stride_d, T, D, DTYPE: tl.constexpr):
    """(rows, columns) of one head of a (B, T, H, D) tensor, zero outside."""
    mask = (rows < T)[:, None] & (columns < D)[None, :]
    return tl.load(pointer + rows[:, None] * stride_t + columns[None, :] * stride_d, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def store(pointers, values, mask):
    """By way of float32 to bfloat16, which the interpreter does not make of float64."""
    if pointers.dtype.element_ty == tl.bfloat16:
        values = values.to(tl.float32)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def scalar_gates(pointer, rows, stride_t, T, DTYPE: tl.constexpr):
    """The log decays of one head, 0 outside; -inf becomes a number, which times 0 is 0."""
    g = tl.load(pointer + rows * stride_t, mask=rows < T, other=0.0).to(DTYPE)
    return tl.where(g < LOWEST, LOWEST, g)


@triton.jit
def vector_gates(pointer, rows, keys, stride_t, stride_d, T, K, DTYPE: tl.constexpr):
    """The same with one for each key channel: (rows, keys)."""
    g = tile(pointer, rows, keys, stride_t, stride_d, T, K, DTYPE)
    return tl.where(g < LOWEST, LOWEST, g)


@triton.jit
def state_tile(pointer, keys, values, K, V):
    """(keys, values) of one contiguous (K, V) state, zero outside."""
    mask = (keys < K)[:, None] & (values < V)[None, :]
    return tl.load(pointer + keys[:, None] * V + values[None, :], mask=mask, other=0.0)


@triton.jit
def spanned(steps, TO_END: tl.constexpr):
    """[i, t]: whether the decay of step t counts in the sum from the chunk's start to i, or after i to its end."""
    if TO_END:
        return steps[None, :] > steps[:, None]
    else:
        return steps[None, :] <= steps[:, None]


@triton.jit
def half_spans(steps, level):
    """[i, t]: whether step t counts in the sum from the boundary before i's block of 2^level steps to i, where the
    block is the later one of its pair, or after i to the boundary behind the block, where it is the earlier one."""
    block = steps >> level
    reach = (block[:, None] & 1) == (steps[None, :] <= steps[:, None]).to(tl.int32)
    return (block[:, None] == block[None, :]) & reach


@triton.jit
def scores_by_halves(
    q_tile, k_tile, g, steps, LEVELS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """sum_c q_ic k_jc exp(sum of g_c over (j, i]) for j <= i: as in ``chunks``."""
    result = tl.where(steps[:, None] == steps[None, :], tl.sum(q_tile * k_tile, 1)[:, None], 0.0)
    for level in tl.static_range(LEVELS):
        later = (((steps >> level) & 1) == 1)[:, None]
        decay = tl.exp(tl.dot(half_spans(steps, level).to(DTYPE), g, input_precision="ieee"))
        late, early = tl.where(later, q_tile * decay, 0.0), tl.where(later, 0.0, k_tile * decay)
        pairs = (steps[:, None] >> (level + 1)) == (steps[None, :] >> (level + 1))
        result += tl.where(pairs, tl.dot(late, tl.trans(early), input_precision=PRECISION), 0.0)
    return result


@triton.jit
def gradients_by_halves(
    dscores, q_tile, k_tile, g, steps, LEVELS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Gradients of q, k and the gates (steps, keys) through ``scores_by_halves``; ``dscores`` 0 above the diagonal."""
    same = tl.sum(tl.where(steps[:, None] == steps[None, :], dscores, 0.0), 1)[:, None]
    dq_tile, dk_tile, dg = same * k_tile, same * q_tile, tl.zeros_like(g)
    for level in tl.static_range(LEVELS):
        later = (((steps >> level) & 1) == 1)[:, None]
        spans = half_spans(steps, level).to(DTYPE)
        decay = tl.exp(tl.dot(spans, g, input_precision="ieee"))
        late, early = tl.where(later, q_tile * decay, 0.0), tl.where(later, 0.0, k_tile * decay)
        pairs = (steps[:, None] >> (level + 1)) == (steps[None, :] >> (level + 1))
        dpairs = tl.where(pairs, dscores, 0.0)
        of_late = tl.dot(dpairs, early, input_precision=PRECISION)
        of_early = tl.dot(tl.trans(dpairs), late, input_precision=PRECISION)
        change = tl.where(later, of_late, of_early) * decay
        dq_tile += tl.where(later, change, 0.0)
        dk_tile += tl.where(later, 0.0, change)
        dg += tl.dot(tl.trans(spans), tl.where(later, q_tile, k_tile) * change, input_precision="ieee")
    return dq_tile, dk_tile, dg


@triton.jit
def segments_around(segments, b, chunk, T, BT: tl.constexpr):
    """Numbers of the sequence that goes on into the chunk, and of the one at its end."""
    start = chunk * BT
    before = tl.load(segments + b * T + start - 1, mask=start > 0, other=0)
    return before, tl.load(segments + b * T + tl.minimum(start + BT, T) - 1)


@triton.jit
def _scores(
    q, q_b, q_t, q_h, q_d, k, k_b, k_t, k_h, k_d, scores, K,
    gates, g_b, g_t, g_h, g_d, segments, T, H, chunks,
    GATE: tl.constexpr, STARTS: tl.constexpr, LEVELS: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunk, bh = program % chunks, program // chunks
    b, h = bh // H, bh % H
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    lower = steps[:, None] >= steps[None, :]
    result = tl.zeros((BT, BT), DTYPE)
    for first in range(0, K, BK):
        keys = first + tl.arange(0, BK)
        q_tile = tile(q + b * q_b + h * q_h, rows, keys, q_t, q_d, T, K, DTYPE)
        k_tile = tile(k + b * k_b + h * k_h, rows, keys, k_t, k_d, T, K, DTYPE)
        if GATE == 2:
            g = vector_gates(gates + b * g_b + h * g_h, rows, keys, g_t, g_d, T, K, DTYPE)
            result += scores_by_halves(q_tile, k_tile, g, steps, LEVELS, DTYPE, PRECISION)
        else:
            result += tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
    if GATE == 1:
        g = scalar_gates(gates + b * g_b + h * g_h, rows, g_t, T, DTYPE)
        result *= tl.exp(tl.cumsum(tl.where(steps[:, None] > steps[None, :], g[:, None], 0.0), 0))
    if STARTS:
        segment = tl.load(segments + b * T + rows, mask=rows < T, other=-1)
        lower = lower & (segment[:, None] == segment[None, :])
    place = program * BT * BT + steps[:, None] * BT + steps[None, :]
    tl.store(scores + place, tl.where(lower, result * SCALE, 0.0))


@triton.jit
def _combine(
    x, x_b, x_t, x_h, x_d, y, y_b, y_t, y_h, y_d, scores, states, result, K, V,
    gates, g_b, g_t, g_h, g_d, segments, T, H, chunks,
    GATE: tl.constexpr, STARTS: tl.constexpr, REVERSE: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunk, bh = program % chunks, program // chunks
    b, h = bh // H, bh % H
    steps = tl.arange(0, BT)
    rows = chunk * BT + steps
    values = tl.program_id(1) * BV + tl.arange(0, BV)
    across = tl.zeros((BT, BV), DTYPE)
    spans = spanned(steps, REVERSE)
    for first in range(0, K, BK):
        keys = first + tl.arange(0, BK)
        x_tile = tile(x + b * x_b + h * x_h, rows, keys, x_t, x_d, T, K, DTYPE)
        if GATE == 2:
            g = vector_gates(gates + b * g_b + h * g_h, rows, keys, g_t, g_d, T, K, DTYPE)
            x_tile *= tl.exp(tl.dot(spans.to(DTYPE), g, input_precision="ieee"))
        state = state_tile(states + program * K * V, keys, values, K, V)
        across += tl.dot(x_tile, state, input_precision=PRECISION)
    if GATE == 1:
        g = scalar_gates(gates + b * g_b + h * g_h, rows, g_t, T, DTYPE)
        across *= tl.exp(tl.sum(tl.where(spans, g[None, :], 0.0), 1))[:, None]
    if STARTS:
        segment = tl.load(segments + b * T + rows, mask=rows < T, other=-1)
        before, last = segments_around(segments, b, chunk, T, BT)
        if REVERSE:
            across = tl.where((segment == last)[:, None], across, 0.0)
        else:
            across = tl.where((segment == before)[:, None], across, 0.0)
    if not REVERSE:
        across *= SCALE
    within = tl.load(scores + program * BT * BT + steps[:, None] * BT + steps[None, :])
    if REVERSE:
        within = tl.trans(within)
    y_tile = tile(y + b * y_b + h * y_h, rows, values, y_t, y_d, T, V, DTYPE)
    across += tl.dot(within, y_tile, input_precision=PRECISION)
    place = ((b * T + rows[:, None]) * H + h) * V + values[None, :]
    store(result + place, across, mask=(rows < T)[:, None] & (values < V)[None, :])
