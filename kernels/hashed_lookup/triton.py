"""The lookup in Triton: rows gathered for a block of tokens; the gradient of a row from the tokens that chose it.

The tokens are sorted by their rows first, so that one program sums the gradient of a row in their order: no atomic
additions, the same bits in every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.hashed_lookup.codes import codes, slopes, weights
from zoo.kernels.triton_support import block_sizes


def forward(x: Tensor, tables: Tensor, temperature: float, scaled: bool) -> Tensor:
    """Same arguments and results as the reference, of any floating dtypes and strides."""
    chosen, factors = _chosen(x, tables, temperature, scaled)
    (count, size, dim), tables = tables.shape, tables.contiguous()
    y = tables.new_empty(len(x), dim)
    sizes = _blocks("forward", x, dim)
    grid = (triton.cdiv(len(x), sizes["rows"]), triton.cdiv(dim, sizes["columns"]))
    kernel: Any = _gather[grid]
    kernel(
        tables, chosen, factors, y, len(x), count, size, dim, _real(factors), sizes["rows"], sizes["columns"],
        num_warps=sizes["warps"], enable_fp_fusion=True,
    )  # fmt: skip
    return y


def backward(dy: Tensor, x: Tensor, tables: Tensor, temperature: float, scaled: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and the tables."""
    chosen, factors = _chosen(x, tables, temperature, scaled)
    (count, size, dim), tables, dy = tables.shape, tables.contiguous(), dy.contiguous()
    sizes = _blocks("backward", x, dim)
    dfactors = torch.empty_like(factors)
    kernel: Any = _products[(triton.cdiv(len(x), sizes["rows"]), count)]
    kernel(
        tables, dy, chosen, dfactors, len(x), size, dim, _real(factors), sizes["rows"], sizes["columns"],
        num_warps=sizes["warps"], enable_fp_fusion=True,
    )  # fmt: skip

    first = size * torch.arange(count, device=x.device)[:, None]
    rows, order = (chosen + first).flatten().sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(count * size + 1, device=x.device))
    dtables = torch.empty_like(tables)
    kernel: Any = _sums[(count * size, triton.cdiv(dim, sizes["columns"]))]
    kernel(
        dy, factors, order, starts, dtables, len(x), dim, _real(factors), sizes["rows"], sizes["columns"],
        num_warps=sizes["warps"], enable_fp_fusion=True,
    )  # fmt: skip
    dx = dfactors.mT[..., None] * slopes(x.to(factors.dtype), temperature, scaled)
    return dx, dtables


def _chosen(x: Tensor, tables: Tensor, temperature: float, scaled: bool) -> tuple[Tensor, Tensor]:
    """Codes and weights, (K, M)."""
    wide = x.to(compute_dtype(x, tables))
    return codes(wide).mT.contiguous(), weights(wide, temperature, scaled).mT.contiguous()


def _blocks(part: str, x: Tensor, dim: int) -> dict[str, int]:
    columns = min(triton.next_power_of_2(dim), 128)
    return block_sizes("hashed_lookup", f"{part} {columns}", x.device, {"rows": 16, "columns": columns, "warps": 4})


def _real(factors: Tensor) -> Any:
    return tl.float64 if factors.dtype == torch.float64 else tl.float32


@triton.jit
def _gather(tables, codes, factors, y, M, K, SIZE, D, REAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y (M, D): ROWS tokens and COLUMNS channels."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (token < M)[:, None] & (column < D)
    total = tl.zeros([ROWS, COLUMNS], dtype=REAL)
    for k in range(K):
        code = tl.load(codes + k * M + token, mask=token < M, other=0)
        factor = tl.load(factors + k * M + token, mask=token < M, other=0.0)
        row = (k * SIZE + code)[:, None] * D
        total += factor[:, None] * tl.load(tables + row + column, mask=mask, other=0.0).to(REAL)
    tl.store(y + token[:, None] * D + column, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _products(tables, dy, codes, dfactors, M, SIZE, D, REAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """dfactors (K, M): of one table, ROWS tokens."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1).to(tl.int64)
    code = tl.load(codes + k * M + token, mask=token < M, other=0)
    row = (k * SIZE + code)[:, None] * D
    total = tl.zeros([ROWS], dtype=REAL)
    for first in range(0, D, COLUMNS):
        column = first + tl.arange(0, COLUMNS)[None, :]
        mask = (token < M)[:, None] & (column < D)
        held = tl.load(tables + row + column, mask=mask, other=0.0).to(REAL)
        arriving = tl.load(dy + token[:, None] * D + column, mask=mask, other=0.0).to(REAL)
        total += tl.sum(held * arriving, axis=1)
    tl.store(dfactors + k * M + token, total, mask=token < M)


@triton.jit
def _sums(dy, factors, order, starts, dtables, M, D, REAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """dtables (K SIZE, D): one row, COLUMNS channels, of the tokens that chose it."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    start = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    total = tl.zeros([ROWS, COLUMNS], dtype=REAL)
    for first in range(start, end, ROWS):
        at = first + tl.arange(0, ROWS)
        place = tl.load(order + at, mask=at < end, other=0)
        factor = tl.load(factors + place, mask=at < end, other=0.0)
        mask = (at < end)[:, None] & (column < D)
        total += factor[:, None] * tl.load(dy + (place % M)[:, None] * D + column, mask=mask, other=0.0).to(REAL)
    found = tl.sum(total, axis=0, keep_dims=True)
    tl.store(dtables + row * D + column, found.to(dtables.dtype.element_ty), mask=column < D)
