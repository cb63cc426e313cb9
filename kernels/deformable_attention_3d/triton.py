"""3D deformable attention in Triton, factorised; the gradients of features and depth from the points that read them.

What the points read is sorted by pixel and head first, so that one program sums a gradient in that order: no atomic
additions, the same bits in every run. Of a bin k, max(0, 1 - |d - k|) is the share that linear interpolation gives it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.triton_support import block_sizes


def forward(value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Same arguments and results as the reference, of any floating dtypes and strides."""
    value, depth, locations, weights = (t.contiguous() for t in (value, depth, locations, weights))
    (batch, height, width, heads, dim), (_, queries, _, points, _) = value.shape, locations.shape
    y, sizes = value.new_empty(batch, queries, heads, dim), _blocks("forward", value, dim)
    kernel: Any = _gather[triton.cdiv(batch * queries, sizes["rows"]), heads, triton.cdiv(dim, sizes["columns"])]
    kernel(
        value, depth, locations, weights, y, batch * queries, queries, height, width, heads, dim, depth.shape[3],
        points, _real(value, depth, locations, weights), sizes["rows"], sizes["columns"], num_warps=sizes["warps"],
        enable_fp_fusion=True,
    )  # fmt: skip
    return y


def backward(
    dy: Tensor, value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all inputs."""
    dy, value, depth, locations, weights = (t.contiguous() for t in (dy, value, depth, locations, weights))
    (batch, height, width, heads, dim), (_, queries, _, points, _) = value.shape, locations.shape
    bins, rows, real = depth.shape[3], batch * queries, _real(value, depth, locations, weights)
    wide = compute_dtype(value, depth, locations, weights)
    sizes = _blocks("backward", value, dim)
    dlocations, dweights = torch.empty_like(locations), torch.empty_like(weights)
    targets = torch.empty(weights.numel() * 4, dtype=torch.int64, device=value.device)
    of_value, of_depth = value.new_empty(2, len(targets), dtype=wide).unbind()
    kernel: Any = _slopes[triton.cdiv(rows, sizes["rows"]), heads]
    kernel(
        dy, value, depth, locations, weights, dlocations, dweights, targets, of_value, of_depth, rows, queries, height,
        width, heads, dim, bins, points, value.numel() // max(dim, 1), real, sizes["rows"], sizes["columns"],
        num_warps=sizes["warps"], enable_fp_fusion=True,
    )  # fmt: skip

    targets, order = targets.sort(stable=True)
    pixels = batch * height * width
    starts = torch.searchsorted(targets, torch.arange(pixels * heads + 1, device=value.device))
    dvalue, ddepth = torch.empty_like(value), torch.empty_like(depth)
    kernel: Any = _sums[pixels * heads, triton.cdiv(dim, sizes["columns"])]
    kernel(
        dy, of_value, order, starts, dvalue, dim, points, real, sizes["rows"], sizes["columns"],
        num_warps=sizes["warps"], enable_fp_fusion=True,
    )  # fmt: skip
    columns = min(triton.next_power_of_2(bins), 128)
    kernel: Any = _depth_sums[pixels, triton.cdiv(bins, columns)]
    kernel(
        locations, of_depth, order, starts, ddepth, heads, bins, real, sizes["rows"], columns,
        num_warps=sizes["warps"], enable_fp_fusion=True,
    )  # fmt: skip
    return dvalue, ddepth, dlocations, dweights


def _blocks(part: str, value: Tensor, dim: int) -> dict[str, int]:
    columns = min(triton.next_power_of_2(max(dim, 1)), 128)
    default = {"rows": 16, "columns": columns, "warps": 4}
    return block_sizes("deformable_attention_3d", f"{part} {columns}", value.device, default)


def _real(*tensors: Tensor) -> Any:
    return tl.float64 if compute_dtype(*tensors) == torch.float64 else tl.float32


@triton.jit
def _place(coordinates, at, size, mask, REAL: tl.constexpr):
    """Beyond which places coordinates lie and how far, and whether anything is read there."""
    x = tl.load(coordinates + 3 * at, mask=mask, other=-2.0).to(REAL) * size - 0.5
    reads = (x >= -1) & (x < size)
    x = tl.where(reads, x, 0.0)
    first = tl.floor(x)
    return x - first, first.to(tl.int64), reads


@triton.jit
def _depths(depth, pixel, k, behind, D, mask, REAL: tl.constexpr):
    """The depth of pixels at a point, and its slope along the bins."""
    first = tl.load(depth + pixel * D + k, mask=mask & (k >= 0), other=0.0).to(REAL)
    second = tl.load(depth + pixel * D + k + 1, mask=mask & (k + 1 < D), other=0.0).to(REAL)
    return (1 - behind) * first + behind * second, second - first


@triton.jit
def _gather(
    value, depth, locations, weights, y, M, Q, H, W, N, C, D, P, REAL: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """y (M = B Q, N, C): ROWS queries, one head, COLUMNS channels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    image = row // Q * H * W
    total = tl.zeros([ROWS, COLUMNS], dtype=REAL)
    for p in range(P):
        at = (row * N + head) * P + p
        right, i, reads_u = _place(locations, at, W, row < M, REAL)
        below, j, reads_v = _place(locations + 1, at, H, row < M, REAL)
        behind, k, reads_d = _place(locations + 2, at, D, row < M, REAL)
        reads = reads_u & reads_v & reads_d
        a = tl.load(weights + at, mask=row < M, other=0.0).to(REAL)
        for dy in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
            for dx in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
                inside = reads & (i + dx >= 0) & (i + dx < W) & (j + dy >= 0) & (j + dy < H)
                pixel = image + (j + dy) * W + i + dx
                share = (right if dx else 1 - right) * (below if dy else 1 - below)
                there, _ = _depths(depth, pixel, k, behind, D, inside, REAL)
                mask = inside[:, None] & (column < C)
                features = tl.load(value + (pixel * N + head)[:, None] * C + column, mask=mask, other=0.0).to(REAL)
                total += (a * share * there)[:, None] * features
    tl.store(
        y + (row * N + head)[:, None] * C + column, total.to(y.dtype.element_ty), mask=(row < M)[:, None] & (column < C)
    )


@triton.jit
def _slopes(
    arriving, value, depth, locations, weights, dlocations, dweights, targets, of_value, of_depth, M, Q, H, W, N, C, D,
    P, NOWHERE, REAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of locations and weights of ROWS queries and one head; of each pixel that a point reads, which it is
    and what it gets: ``of_value`` dy goes to its features, ``of_depth`` to its bins around the point."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    image = row // Q * H * W
    here = row < M
    for p in range(P):
        at = (row * N + head) * P + p
        right, i, reads_u = _place(locations, at, W, here, REAL)
        below, j, reads_v = _place(locations + 1, at, H, here, REAL)
        behind, k, reads_d = _place(locations + 2, at, D, here, REAL)
        reads = reads_u & reads_v & reads_d
        a = tl.load(weights + at, mask=here, other=0.0).to(REAL)
        du = tl.zeros([ROWS], dtype=REAL)
        dv = tl.zeros([ROWS], dtype=REAL)
        dd = tl.zeros([ROWS], dtype=REAL)
        da = tl.zeros([ROWS], dtype=REAL)
        for dy in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
            for dx in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
                inside = reads & (i + dx >= 0) & (i + dx < W) & (j + dy >= 0) & (j + dy < H)
                pixel = image + (j + dy) * W + i + dx
                wide = right if dx else 1 - right
                tall = below if dy else 1 - below
                there, along = _depths(depth, pixel, k, behind, D, inside, REAL)
                g = tl.zeros([ROWS], dtype=REAL)
                for first in range(0, C, COLUMNS):
                    column = first + tl.arange(0, COLUMNS)[None, :]
                    mask = inside[:, None] & (column < C)
                    features = tl.load(value + (pixel * N + head)[:, None] * C + column, mask=mask, other=0.0).to(REAL)
                    own = tl.load(arriving + (row * N + head)[:, None] * C + column, mask=mask, other=0.0).to(REAL)
                    g += tl.sum(features * own, axis=1)
                tl.store(targets + 4 * at + 2 * dy + dx, tl.where(inside, pixel * N + head, NOWHERE), mask=here)
                tl.store(of_value + 4 * at + 2 * dy + dx, a * wide * tall * there, mask=here)
                tl.store(of_depth + 4 * at + 2 * dy + dx, a * wide * tall * g, mask=here)
                da += wide * tall * there * g
                du += (tall if dx else -tall) * there * g
                dv += (wide if dy else -wide) * there * g
                dd += wide * tall * along * g
        tl.store(dweights + at, da.to(dweights.dtype.element_ty), mask=here)
        tl.store(dlocations + 3 * at, (a * W * du).to(dlocations.dtype.element_ty), mask=here)
        tl.store(dlocations + 3 * at + 1, (a * H * dv).to(dlocations.dtype.element_ty), mask=here)
        tl.store(dlocations + 3 * at + 2, (a * D * dd).to(dlocations.dtype.element_ty), mask=here)


@triton.jit
def _sums(
    arriving, of_value, order, starts, dvalue, C, P, REAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """dvalue (B H W N, C): one pixel and head, COLUMNS channels, of the points that read it."""
    target = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    start = tl.load(starts + target)
    end = tl.load(starts + target + 1)
    total = tl.zeros([ROWS, COLUMNS], dtype=REAL)
    for first in range(start, end, ROWS):
        at = first + tl.arange(0, ROWS)
        reader = tl.load(order + at, mask=at < end, other=0)
        factor = tl.load(of_value + reader, mask=at < end, other=0.0)
        mask = (at < end)[:, None] & (column < C)
        own = tl.load(arriving + (reader // (4 * P))[:, None] * C + column, mask=mask, other=0.0).to(REAL)
        total += factor[:, None] * own
    found = tl.sum(total, axis=0, keep_dims=True)
    tl.store(dvalue + target * C + column, found.to(dvalue.dtype.element_ty), mask=column < C)


@triton.jit
def _depth_sums(
    locations, of_depth, order, starts, ddepth, N, D, REAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """ddepth (B H W, D): one pixel, COLUMNS bins, of the points that read it, of all heads."""
    pixel = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    start = tl.load(starts + pixel * N)
    end = tl.load(starts + pixel * N + N)
    total = tl.zeros([ROWS, COLUMNS], dtype=REAL)
    for first in range(start, end, ROWS):
        at = first + tl.arange(0, ROWS)
        reader = tl.load(order + at, mask=at < end, other=0)
        factor = tl.load(of_depth + reader, mask=at < end, other=0.0)
        place = tl.load(locations + 3 * (reader // 4) + 2, mask=at < end, other=0.0).to(REAL) * D - 0.5
        distance = tl.abs(place[:, None] - column)
        total += factor[:, None] * tl.maximum(1 - distance, 0.0)
    found = tl.sum(total, axis=0, keep_dims=True)
    tl.store(ddepth + pixel * D + column, found.to(ddepth.dtype.element_ty), mask=column < D)
