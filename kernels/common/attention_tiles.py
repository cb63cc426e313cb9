"""Softmax attention in tiles, online, in Triton: the steps of the sliding-window and block-sparse kernels.

Products are of the inputs' dtype with float32 sums.
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
    """Write a tile (ROWS, BLOCK) from row ``start`` on: its valid rows and first COLUMNS columns."""
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
