"""The product with a sparse matrix in Triton: a tile is filled from its values and multiplied as a dense one.

Each row of a tile keeps how many of its values have been read; within a tile the place of a value is the number of bits
before it. So a row's values are read once, in order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common.triton_product import precision
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.sparse_matmul import reference
from zoo.kernels.sparse_matmul.bitmap import places
from zoo.kernels.triton_support import block_sizes


@triton.jit
def _multiply(
    x, values, mask, start, output, tokens, rows, columns, row_bytes, each, x_token, x_column,
    EVEN: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    FACTOR: tl.constexpr, TOTAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """output (M, N) = x (M, C) w^T of a tile of tokens and a tile of rows of the matrix."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    in_tokens, in_rows = token < tokens, row < rows
    if EVEN:  # noqa: SIM108 (only one of the two is compiled)
        read = row * each
    else:
        read = tl.load(start + row, mask=in_rows, other=0).to(tl.int64)
    total = tl.zeros((TOKENS, ROWS), dtype=TOTAL)
    for first in range(0, columns, DEPTH):
        column = first + depth
        left = column < columns
        byte = tl.load(
            mask + row[:, None] * row_bytes + (column // 8)[None, :], mask=in_rows[:, None] & left[None, :], other=0
        )
        bit = (byte.to(tl.int32) >> (column % 8)[None, :]) & 1
        before = tl.cumsum(bit, 1) - bit
        w = tl.load(values + read[:, None] + before, mask=bit > 0, other=0.0).to(FACTOR)
        read += tl.sum(bit, 1)
        a = tl.load(
            x + token[:, None] * x_token + column.to(tl.int64)[None, :] * x_column,
            mask=in_tokens[:, None] & left[None, :], other=0.0,
        ).to(FACTOR)  # fmt: skip
        total = tl.dot(a, tl.trans(w), total, input_precision=PRECISION, out_dtype=TOTAL)
    at = output + token[:, None] * rows + row[None, :]
    tl.store(at, total.to(output.dtype.element_ty), mask=in_tokens[:, None] & in_rows[None, :])


def forward(x: Tensor, values: Tensor, mask: Tensor, start: Tensor | None) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes and strides of x."""
    (tokens, columns), rows = x.shape, len(mask)
    values, mask = values.contiguous(), mask.contiguous()
    output, options = x.new_empty(tokens, rows), _options(x, values)
    grid = (triton.cdiv(tokens, options["TOKENS"]), triton.cdiv(rows, options["ROWS"]))
    kernel: Any = _multiply[grid]
    kernel(
        x, values, mask, values if start is None else start.contiguous(), output, tokens, rows, columns, mask.shape[1],
        len(values) // rows, x.stride(0), x.stride(1), EVEN=start is None, **options,
    )  # fmt: skip
    return output


def backward(dy: Tensor, x: Tensor, values: Tensor, mask: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of x and values, by torch's dense products."""
    dtype = compute_dtype(x, values)
    dy, x = dy.to(dtype), x.to(dtype)
    dx = dy @ reference.dense(values.to(dtype), mask, x.shape[1])
    return dx, (dy.mT @ x).masked_select(places(mask, x.shape[1]))


def _options(x: Tensor, values: Tensor) -> dict[str, Any]:
    """Dtypes of the factors and of their sums, and block sizes by the tokens and the bytes of a factor."""
    size, dtypes = precision(x, values)
    tokens = min(max(triton.next_power_of_2(len(x)), 16), 64)
    default = {"TOKENS": tokens, "ROWS": 64, "DEPTH": 128 // size, "num_warps": 4}
    if not x.is_cuda:
        default |= {"TOKENS": 16, "ROWS": 16, "DEPTH": 32}
    return block_sizes("sparse_matmul", f"tokens{tokens}_bytes{size}", x.device, default) | dtypes
