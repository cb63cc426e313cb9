"""RMS normalisation in Triton: a program reads whole rows of one group once, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.triton_support import block_sizes

TILE = 4096  # elements a program holds at a time, where a group is not larger
PROGRAMS = 512  # of the backward, each of which sums one part of the weight's gradient


def forward(x, weight, z, num_groups, norm_before_gate, eps, dtype) -> Tensor:
    """Same arguments as the reference, of any floating dtypes and strides; x and z (1, M, D)."""
    y = x.new_empty(x.shape, dtype=dtype)
    rows, columns, warps = _tile(x, num_groups)
    kernel: Any = _forward[triton.cdiv(x.shape[1], rows), num_groups]
    with torch.cuda.device_of(x):
        kernel(
            x, x if weight is None else weight.contiguous(), x if z is None else z, y,
            *_sizes(x, z, num_groups), *_flags(x, weight, z, norm_before_gate, eps), rows, columns, num_warps=warps,
            enable_fp_fusion=True,
        )  # fmt: skip
    return y


def backward(dy, x, weight, z, num_groups, norm_before_gate, eps, _) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and z, None for what is None; nothing is rounded on the way."""
    rows, columns, warps = _tile(x, num_groups)
    blocks = triton.cdiv(x.shape[1], rows)
    flags = _flags(x, weight, z, norm_before_gate, eps)
    dx, dz = x.new_empty(x.shape), None if z is None else z.new_empty(z.shape)
    dweight = x.new_empty(min(blocks, PROGRAMS), 1 if weight is None else x.shape[2], dtype=compute_dtype(x, weight, z))
    kernel: Any = _backward[min(blocks, PROGRAMS), num_groups]
    with torch.cuda.device_of(x):
        kernel(
            dy, x, x if weight is None else weight.contiguous(), x if z is None else z,
            dx, dweight, dx if dz is None else dz, blocks, dy.stride(1), dy.stride(2),
            *_sizes(x, z, num_groups), *flags, rows, columns, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
    return dx, None if weight is None else dweight.sum(0), dz


def _tile(x: Tensor, num_groups: int) -> tuple[int, int, int]:
    """Rows and columns of a tile, and the warps for it."""
    columns = triton.next_power_of_2(x.shape[2] // num_groups)
    warps = 4 if columns <= 2048 else 8 if columns <= 8192 else 16
    sizes = block_sizes("rms_norm", f"{columns}", x.device, {"rows": max(1, min(32, TILE // columns)), "warps": warps})
    return sizes["rows"], columns, sizes["warps"]


def _sizes(x: Tensor, z: Tensor | None, num_groups: int) -> tuple[int, ...]:
    gate = (0, 0) if z is None else z.stride()[1:]
    return x.shape[1], x.shape[2], x.shape[2] // num_groups, *x.stride()[1:], *gate


def _flags(x, weight, z, norm_before_gate, eps) -> tuple:
    real = tl.float64 if compute_dtype(x, weight, z) == torch.float64 else tl.float32
    return weight is not None, z is not None, norm_before_gate, eps, real


@triton.jit
def _sigmoid(z):
    small = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, small) / (1 + small)


@triton.jit
def _forward(
    x, weight, z, y, M, D, N, x_row, x_column, z_row, z_column,
    HAS_WEIGHT: tl.constexpr, HAS_Z: tl.constexpr, OUTSIDE: tl.constexpr, EPS: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y of ROWS rows of one group of N columns, the first of them at D * row + N * group."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = tl.arange(0, COLUMNS)[None, :]
    column = tl.program_id(1).to(tl.int64) * N + inside
    mask = (row < M) & (inside < N)
    u = tl.load(x + row * x_row + column * x_column, mask=mask, other=0.0).to(REAL)
    if HAS_Z:
        gate = tl.load(z + row * z_row + column * z_column, mask=mask, other=0.0).to(REAL)
        gate = gate * _sigmoid(gate)
        if not OUTSIDE:
            u = u * gate
    u = u / tl.sqrt(tl.sum(u * u, axis=1, keep_dims=True) / N + EPS)
    if HAS_WEIGHT:
        w = tl.load(weight + column, mask=inside < N, other=0.0).to(REAL)
        u = u.to(y.dtype.element_ty).to(REAL) * w
        if HAS_Z and OUTSIDE:
            u = u.to(y.dtype.element_ty).to(REAL)
    if HAS_Z and OUTSIDE:
        u = u * gate
    tl.store(y + row * D + column, u.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    dy, x, weight, z, dx, dweight, dz, blocks, dy_row, dy_column, M, D, N, x_row, x_column, z_row, z_column,
    HAS_WEIGHT: tl.constexpr, HAS_Z: tl.constexpr, OUTSIDE: tl.constexpr, EPS: tl.constexpr, REAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dx and dz of every P-th block of ROWS rows, for P programs, and their sum for dweight (P, D)."""
    inside = tl.arange(0, COLUMNS)[None, :]
    column = tl.program_id(1).to(tl.int64) * N + inside
    dw = tl.zeros([1, COLUMNS], dtype=REAL)
    if HAS_WEIGHT:
        w = tl.load(weight + column, mask=inside < N, other=0.0).to(REAL)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = tl.full([ROWS, 1], 0, tl.int64) + block * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < M) & (inside < N)
        g = tl.load(x + row * x_row + column * x_column, mask=mask, other=0.0).to(REAL)
        d = tl.load(dy + row * dy_row + column * dy_column, mask=mask, other=0.0).to(REAL)
        u = d
        if HAS_WEIGHT:
            u = u * w
        if HAS_Z:
            gate_input = tl.load(z + row * z_row + column * z_column, mask=mask, other=0.0).to(REAL)
            sigmoid = _sigmoid(gate_input)
            gate = gate_input * sigmoid
            slope = sigmoid * (1 + gate_input * (1 - sigmoid))
            before = g
            weighted = u
            if OUTSIDE:
                u = u * gate
                d = d * gate
            else:
                g = g * gate
        scale = 1 / tl.sqrt(tl.sum(g * g, axis=1, keep_dims=True) / N + EPS)
        normal = g * scale
        along = tl.sum(u * normal, axis=1, keep_dims=True) / N
        dg = scale * (u - normal * along)
        if HAS_WEIGHT:
            dw += tl.sum(d * normal, axis=0, keep_dims=True)
        if HAS_Z:
            if OUTSIDE:
                dgate = weighted * normal
            else:
                dgate = dg * before
                dg = dg * gate
            tl.store(dz + row * D + column, (dgate * slope).to(dz.dtype.element_ty), mask=mask)
        tl.store(dx + row * D + column, dg.to(dx.dtype.element_ty), mask=mask)
    if HAS_WEIGHT:
        tl.store(dweight + tl.program_id(0).to(tl.int64) * D + column, dw, mask=inside < N)
