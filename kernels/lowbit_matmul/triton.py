"""The product with packed integers in Triton: a tile of the matrix is unpacked in registers, 128 columns at a time.

A block of 128 codes lies in parts of whole bytes of which each holds the same bits of several columns (``packing``), so
a part is loaded once and shifted: the idea of Tilus, weights laid out so that a tile of any width is plain bytes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.common.triton_product import TRITON_DTYPES
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.lowbit_matmul import tiled
from zoo.kernels.triton_support import block_sizes

BLOCK = tl.constexpr(128)


def forward(x: Tensor, scale: Tensor, codes: Tensor, zero: Tensor | None, bits: int, _: bool) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes and strides."""
    y = x.new_empty(x.shape[0], len(codes))
    sizes = _sizes(x, scale)
    grid = (triton.cdiv(x.shape[0], sizes["ROWS"]), triton.cdiv(len(codes), sizes["COLUMNS"]))
    product: Any = _product[grid]
    product(
        x, y, *x.shape, *x.stride(), len(codes), *_record(codes, scale, zero, x.shape[1]), **_flags(zero, bits), **sizes
    )
    return y


def backward(dy, x, scale, codes, zero, bits, learns_scale) -> tuple[Tensor, Tensor]:
    """Gradients of x and scale; that of the scale is zero where it is not learnt."""
    numbers = partial(dequantise, dtype=compute_dtype(x, scale))
    return tiled.backward(dy, x, scale, codes, zero, bits, learns_scale, numbers)


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, columns: int, dtype) -> Tensor:
    """The matrix (N, C) that codes stand for, in float32 or float64."""
    w = scale.new_empty(len(codes), columns, dtype=dtype)
    grid = (triton.cdiv(len(codes), 32), triton.cdiv(columns, 128))
    record = _record(codes, scale, zero, columns)
    numbers: Any = _numbers[grid]
    numbers(w, len(codes), columns, *record, **_flags(zero, bits), COLUMNS=32, REAL=TRITON_DTYPES[dtype])
    return w


def _record(codes: Tensor, scale: Tensor, zero: Tensor | None, columns: int) -> tuple[Any, ...]:
    """The tensors of a record, the columns of a group and the strides of the scale."""
    zero = codes if zero is None else zero.contiguous()
    return codes.contiguous(), scale, zero, columns // scale.shape[1], *scale.stride()


def _flags(zero: Tensor | None, bits: int) -> dict[str, Any]:
    return {"BITS": bits, "HAS_ZERO": zero is not None, "enable_fp_fusion": True}


def _sizes(x: Tensor, scale: Tensor) -> dict[str, Any]:
    """Blocks, and dtypes of the factors and their sums: half precision goes to the tensor cores as it is, float32 as
    three products in TF32."""
    total = compute_dtype(x, scale)
    factor = x.dtype if x.is_cuda and total == torch.float32 else total
    rows = min(max(triton.next_power_of_2(x.shape[0]), 16), 64)
    default = {"ROWS": rows, "COLUMNS": 64 if x.is_cuda else 32, "num_warps": 4}
    split = factor == torch.float32 and x.is_cuda and torch.version.hip is None
    return block_sizes("lowbit_matmul", f"rows{rows}_bytes{factor.itemsize}", x.device, default) | {
        "FACTOR": TRITON_DTYPES[factor],
        "REAL": TRITON_DTYPES[total],
        "PRECISION": "tf32x3" if split else "ieee",
    }


@triton.jit
def _part(at, BITS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """The WIDTH bits that a part of whole blocks has of their codes, in their place: (COLUMNS, 128)."""
    SHIFT: tl.constexpr = BITS // (2 * WIDTH) * (2 * WIDTH)
    SLOTS: tl.constexpr = 8 // WIDTH
    byte = tl.load(at + 16 * SHIFT + tl.arange(0, 16 * WIDTH)[None, :]).to(tl.int32)
    slots = (byte[:, None, :] >> (WIDTH * tl.arange(0, SLOTS))[None, :, None]) & (2**WIDTH - 1)
    return tl.reshape(slots, (COLUMNS, BLOCK)) << SHIFT


@triton.jit
def _part_of_rest(at, n, BITS: tl.constexpr, WIDTH: tl.constexpr):
    """The same of the last block, of n codes."""
    SHIFT: tl.constexpr = BITS // (2 * WIDTH) * (2 * WIDTH)
    code = tl.arange(0, BLOCK)[None, :]
    length = n * WIDTH // 8
    byte = tl.load(at + n * SHIFT // 8 + code % length, mask=code < n, other=0).to(tl.int32)
    return ((byte >> (code // length * WIDTH)) & (2**WIDTH - 1)) << SHIFT


@triton.jit
def _codes(at, n, BITS: tl.constexpr, COLUMNS: tl.constexpr):
    """The codes (COLUMNS, 128) of a block of n, at ``at`` (COLUMNS, 1); 0 behind the last."""
    q = tl.zeros((COLUMNS, BLOCK), dtype=tl.int32)
    if n >= BLOCK:
        for power in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            if BITS & (1 << power):
                q += _part(at, BITS, 1 << power, COLUMNS)
    else:
        for power in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            if BITS & (1 << power):
                q += _part_of_rest(at, n, BITS, 1 << power)
    return q


@triton.jit
def _matrix(
    codes, scale, zero, size, scale_row, scale_group, row, start, C,
    BITS: tl.constexpr, HAS_ZERO: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The numbers (COLUMNS, 128) of rows (COLUMNS,) of the matrix from column ``start`` on; 0 behind the last."""
    padded = (C + 7) // 8 * 8
    at = codes + row[:, None] * (padded // 8 * BITS) + start // 8 * BITS
    q = _codes(at, padded - start, BITS, COLUMNS)
    column = start + tl.arange(0, BLOCK)
    group = tl.minimum(column, C - 1) // size
    s = tl.load(scale + row[:, None] * scale_row + group[None, :] * scale_group).to(REAL)
    if HAS_ZERO:
        q -= tl.load(zero + row[:, None] * (C // size) + group[None, :]).to(tl.int32)
    else:
        q -= 2 ** (BITS - 1)
    return tl.where((column < C)[None, :], s * q.to(REAL), 0.0)


@triton.jit
def _product(
    x, y, M, C, x_row, x_column, N, codes, scale, zero, size, scale_row, scale_group,
    BITS: tl.constexpr, HAS_ZERO: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    FACTOR: tl.constexpr, REAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (M, N) = x (M, C) times the transpose of the matrix (N, C)."""
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=REAL)
    for start in range(0, C, BLOCK):
        column = start + tl.arange(0, BLOCK)
        at = x + m[:, None] * x_row + column[None, :].to(tl.int64) * x_column
        a = tl.load(at, mask=(m[:, None] < M) & (column[None, :] < C), other=0.0).to(FACTOR)
        w = _matrix(
            codes, scale, zero, size, scale_row, scale_group, tl.minimum(n, N - 1), start, C,
            BITS, HAS_ZERO, COLUMNS, REAL,
        )  # fmt: skip
        total = tl.dot(a, tl.trans(w).to(FACTOR), total, input_precision=PRECISION, out_dtype=REAL)
    at = y + m[:, None] * N + n[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def _numbers(
    w, N, C, codes, scale, zero, size, scale_row, scale_group,
    BITS: tl.constexpr, HAS_ZERO: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """w (N, C), the matrix."""
    n = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.program_id(1) * BLOCK
    found = _matrix(
        codes, scale, zero, size, scale_row, scale_group, tl.minimum(n, N - 1), start, C, BITS, HAS_ZERO, COLUMNS, REAL
    )
    column = start + tl.arange(0, BLOCK)
    tl.store(w + n[:, None] * C + column[None, :], found, mask=(n[:, None] < N) & (column[None, :] < C))
