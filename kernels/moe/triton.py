"""The grouped matrix product in Triton: one program a tile of rows of one expert.

How many tiles each expert has is known on the device only. As many programs start as there could be at most, and each
finds its tile from the offsets; those without one do nothing. Nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common.triton_product import precision
from zoo.kernels.triton_support import block_sizes


@triton.jit
def _tile(offsets, tile, rows, groups, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Group, first row and end of rows of a tile. Rows behind the last group are group ``groups``; no tile: no rows."""
    group = tl.arange(0, GROUPS)
    start = tl.load(offsets + group, mask=(group > 0) & (group <= groups), other=0)
    start = tl.where(group > groups, rows, tl.minimum(tl.maximum(start, 0), rows))
    end = tl.load(offsets + group + 1, mask=group < groups, other=0)
    end = tl.where(group < groups, tl.minimum(tl.maximum(end, 0), rows), rows)
    tiles = (tl.maximum(end - start, 0) + ROWS - 1) // ROWS
    behind = tl.cumsum(tiles, 0)
    found = tl.sum((behind <= tile).to(tl.int32), 0)
    first = tl.sum(tl.where(group == found, start + (tile - (behind - tiles)) * ROWS, 0), 0)
    last = tl.sum(tl.where(group == found, end, 0), 0)
    return found, first, last


@triton.jit
def _multiply(
    x, weight, offsets, output, rows, groups, depth, columns,
    x_row, x_depth, weight_group, weight_depth, weight_column,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    FACTOR: tl.constexpr, TOTAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """output (M, F) = x (M, D) weight[group of the row] (D, F), zeros for the rows behind the last group."""
    group, first, last = _tile(offsets, tl.program_id(0), rows, groups, GROUPS, ROWS)
    row = (first + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH).to(tl.int64)
    x_at = x + row[:, None] * x_row + inner[None, :] * x_depth
    weight_at = weight + group.to(tl.int64) * weight_group
    weight_at = weight_at + inner[:, None] * weight_depth + column[None, :] * weight_column
    in_rows, in_columns = row[:, None] < last, column[None, :] < columns
    total = tl.zeros((ROWS, COLUMNS), dtype=TOTAL)
    for start in range(0, tl.where(group < groups, depth, 0), DEPTH):
        left = inner < depth - start
        a = tl.load(x_at, mask=in_rows & left[None, :], other=0.0).to(FACTOR)
        b = tl.load(weight_at, mask=left[:, None] & in_columns, other=0.0).to(FACTOR)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=TOTAL)
        x_at += DEPTH * x_depth
        weight_at += DEPTH * weight_depth
    output_at = output + row[:, None] * columns + column[None, :]
    tl.store(output_at, total.to(output.dtype.element_ty), mask=in_rows & in_columns)


@triton.jit
def _outer(
    x, dy, offsets, dweight, rows, depth, columns, x_row, x_depth, dy_row, dy_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    FACTOR: tl.constexpr, TOTAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dweight[e] (D, F) = x[rows of e] (D, m) dy[rows of e] (m, F), zeros for a group without rows."""
    group = tl.program_id(1).to(tl.int64)
    across = tl.cdiv(columns, COLUMNS)
    inner = (tl.program_id(0) // across).to(tl.int64) * DEPTH + tl.arange(0, DEPTH)
    column = (tl.program_id(0) % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    last = tl.minimum(tl.load(offsets + group + 1), rows)
    first = tl.minimum(tl.maximum(tl.load(offsets + group), 0), rows)
    in_depth, in_columns = inner[:, None] < depth, column[None, :] < columns
    total = tl.zeros((DEPTH, COLUMNS), dtype=TOTAL)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        a_at = x + inner[:, None] * x_depth + row[None, :] * x_row
        b_at = dy + row[:, None] * dy_row + column[None, :] * dy_column
        a = tl.load(a_at, mask=in_depth & (row[None, :] < last), other=0.0).to(FACTOR)
        b = tl.load(b_at, mask=(row[:, None] < last) & in_columns, other=0.0).to(FACTOR)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=TOTAL)
    dweight_at = dweight + (group * depth + inner[:, None]) * columns + column[None, :]
    tl.store(dweight_at, total.to(dweight.dtype.element_ty), mask=in_depth & in_columns)


def forward(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes and strides."""
    rows, (groups, depth, columns) = x.shape[0], weight.shape
    output = x.new_empty(rows, columns)
    options = _options("rows", x, weight)
    options["GROUPS"] = triton.next_power_of_2(groups + 1)
    grid = (rows // options["ROWS"] + groups + 1, triton.cdiv(columns, options["COLUMNS"]))
    _multiply[grid](
        x, weight, offsets.contiguous(), output, rows, groups, depth, columns, x.stride(0), x.stride(1),
        weight.stride(0), weight.stride(1), weight.stride(2), **options,
    )  # fmt: skip
    return output


def backward(dy: Tensor, x: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; zero for rows without a group and for groups without rows."""
    rows, (groups, depth, columns) = x.shape[0], weight.shape
    dweight = weight.new_empty(weight.shape)
    options = _options("outer", x, weight)
    grid = (triton.cdiv(depth, options["DEPTH"]) * triton.cdiv(columns, options["COLUMNS"]), groups)
    _outer[grid](
        x, dy, offsets.contiguous(), dweight, rows, depth, columns, x.stride(0), x.stride(1), dy.stride(0),
        dy.stride(1), **options,
    )  # fmt: skip
    return forward(dy, weight.mT, offsets), dweight


def _options(kernel: str, x: Tensor, weight: Tensor) -> dict[str, Any]:
    """Dtypes of the factors and of their sums, and block sizes by the mean rows a group and the bytes of a factor.

    Half precision of one kind goes to the tensor cores as it is; float32 as three products in TF32.
    """
    size, dtypes = precision(x, weight)
    mean = min(max(triton.next_power_of_2(x.shape[0] // weight.shape[0]), 16), 128)
    side = 128 if size == 2 else 64
    defaults = {
        "rows": {"ROWS": min(mean, 256 // size), "COLUMNS": side, "DEPTH": 128 // size},
        "outer": {"ROWS": 128 // size, "COLUMNS": side, "DEPTH": side},
    }
    default = defaults[kernel] | {"num_warps": 8 if size == 2 and mean > 32 else 4}
    if not x.is_cuda:
        default |= {"ROWS": 16, "COLUMNS": 32, "DEPTH": 32}
    return block_sizes("grouped_matmul", f"{kernel}{mean}_bytes{size}", x.device, default) | dtypes
