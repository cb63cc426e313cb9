r"""The long convolution on the GPU: a whole row of one channel in one program, transformed by matrix products.

A program holds N = N1 N2 time steps of two rows of the batch as the real and imaginary part of one (N1, N2) matrix X,
which a real kernel leaves apart. With F the DFT matrices and W the twiddle factors exp(-2 pi i a b / N)

    Z = (W o (F1 X)) F2        Y = conj(F1) (conj(W) o ((Z o K) conj(F2)))

where K is the kernel's spectrum over N in the same order (N1, N2). Longer rows take one more stage outside (three
passes through memory, as in FlashButterfly): M times N steps, the DFT of size M as one matrix product in torch, then M
independent rows for the kernel, each with its own twiddle factors and its own part of the kernel's spectrum.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.long_conv.spectral import with_skip_and_gate
from zoo.kernels.triton_support import block_sizes

SMALLEST = 256  # steps a program: tl.dot takes no side below 16
DEFAULT = {torch.float32: {"steps": 4096, "num_warps": 8}, torch.float64: {"steps": 1024, "num_warps": 8}}
PROGRAMS = 256  # of the kernel's gradient, at least: the batch is split until there are as many


def forward(u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool) -> Tensor:
    """y = gate * (convolution + D u), in the compute dtype."""
    plan = _plan(u, kernel, circular, compute_dtype(u, kernel, D, gate))
    return _convolve(plan, u, _kernel_spectrum(plan, kernel), D=D, after=gate)


def backward(
    dy: Tensor, u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of u, kernel, D and gate, by the same kernel: with conj(K) for u, and with dy as the gate for gate."""
    plan = _plan(u, kernel, circular, compute_dtype(u, kernel, D, gate))
    K = _kernel_spectrum(plan, kernel)
    dgate = None if gate is None else _convolve(plan, u, K, D=D, after=dy)
    dc = dy.to(plan.dtype) if gate is None else dy.to(plan.dtype) * gate
    du = _convolve(plan, dc, K, D=D, adjoint=True)
    dkernel = _kernel_gradient(plan, u, dc, kernel.shape[1])
    return du, dkernel, None if D is None else (dc * u).sum((0, 1)), dgate


class Plan(NamedTuple):
    """M rows of N1 N2 steps a row; ``circle`` > 0: a linear convolution of ``reach`` steps, to be folded onto it."""

    outer: int  # M
    n1: int
    n2: int
    circle: int
    reach: int
    warps: int
    dtype: torch.dtype

    @property
    def inner(self) -> int:
        return self.n1 * self.n2

    @property
    def steps(self) -> int:
        return self.outer * self.inner


def _plan(u: Tensor, kernel: Tensor, circular: bool, dtype: torch.dtype) -> Plan:
    sizes = block_sizes("long_conv", str(dtype).removeprefix("torch."), u.device, DEFAULT[dtype])
    length, reach, largest = u.shape[1], u.shape[1] + kernel.shape[1] - 1, sizes["steps"]
    fits_circle = circular and length % SMALLEST == 0
    if fits_circle:
        inner = min(largest, length & -length)  # the power of two in T
        outer = length // inner
    else:
        inner = min(largest, max(SMALLEST, 1 << (reach - 1).bit_length()))
        outer = -(-reach // inner)
    n1 = 1 << (inner.bit_length() // 2)
    circle = length if circular and not fits_circle else 0
    return Plan(outer, n1, inner // n1, circle, reach, sizes["num_warps"], dtype)


def _convolve(
    plan: Plan,
    x: Tensor,
    K: Tensor,
    *,
    D: Tensor | None = None,
    after: Tensor | None = None,
    adjoint: bool = False,
) -> Tensor:
    """after * (x convolved with the kernel + D x), or with the kernel reversed in time (``adjoint``)."""
    if plan.outer == 1 and plan.circle == 0:
        y = torch.empty(x.shape, dtype=plan.dtype, device=x.device)
        _launch_convolution(plan, x, K, y, D, after, adjoint, None)
        return y
    length = x.shape[1]
    y = _on_longer_rows(plan, _extended(plan, x) if adjoint else x, K, adjoint)
    if plan.circle > 0 and not adjoint:
        y, tail = y[:, :length], y[:, length : plan.reach]
        y = y + F.pad(tail, (0, 0, 0, 2 * length - plan.reach))
    return with_skip_and_gate(y[:, :length], x, D, after)


def _extended(plan: Plan, x: Tensor) -> Tensor:
    """Where a circle is computed as a longer line, the adjoint of the folding: x goes on around the circle."""
    return x if plan.circle == 0 else torch.cat([x, x[:, : plan.reach - plan.circle]], 1)


def _on_longer_rows(plan: Plan, x: Tensor, K: Tensor, adjoint: bool) -> Tensor:
    """The convolution over all N steps (B, N, D)."""
    batch, _, dim = x.shape
    rows = _outer_stage(plan, x)  # (pairs * M, 2, inner, D)
    flat = rows.view(-1, plan.inner, dim)
    result = torch.empty_like(flat)
    _launch_convolution(plan, flat, K, result, None, None, adjoint, _outer_twiddles(plan, x.device))
    inverse = _outer_matrix(plan, x.device).mT
    y = inverse @ result.view(-1, 2 * plan.outer, plan.inner * dim)  # (pairs, (2, M), inner * D)
    return y.view(-1, plan.steps, dim)[:batch]


def _outer_stage(plan: Plan, x: Tensor) -> Tensor:
    """Pairs of rows of the batch as complex rows, through the DFT of size M: (pairs * M, 2, inner, D)."""
    batch, length, dim = x.shape
    x = F.pad(x.to(plan.dtype), (0, 0, 0, plan.steps - length, 0, batch % 2))
    x = x.view(-1, 2 * plan.outer, plan.inner * dim)
    return (_outer_matrix(plan, x.device) @ x).view(-1, 2, plan.inner, dim)


def _launch_convolution(
    plan: Plan,
    x: Tensor,
    K: Tensor,
    y: Tensor,
    D: Tensor | None,
    after: Tensor | None,
    adjoint: bool,
    twiddles: Tensor | None,
) -> None:
    batch, length, dim = x.shape
    pairs = -(-batch // 2)
    tables = _tables(plan.n1, plan.n2, plan.dtype, x.device)
    launch: Any = _convolution_kernel[(dim, pairs)]
    launch(
        x, K, y, tables, twiddles, D, after,
        batch, length, dim, plan.outer, dim * plan.steps, plan.steps, *x.stride(), *y.stride(),
        *(after.stride() if after is not None else (0, 0, 0)), D.stride(0) if D is not None else 0,
        N1=plan.n1, N2=plan.n2, ROWS=_rows(plan, length), ADJOINT=adjoint,
        SKIP=D is not None, AFTER=after is not None, OUTER=twiddles is not None, DTYPE=_tl_dtype(plan.dtype),
        num_warps=plan.warps, enable_fp_fusion=True,
    )  # fmt: skip


def _kernel_gradient(plan: Plan, u: Tensor, dc: Tensor, taps: int) -> Tensor:
    """Gradient (D, L) of the kernel: the spectra's products summed over the batch, transformed back once.

    For pairs of rows u0 + i u1 and v0 + i v1 the product conj(U) V is that of (u0, v0) plus that of (u1, v1), plus i
    times what belongs to no real kernel: the imaginary part of the signal, left out.
    """
    dc = _extended(plan, dc)
    twiddles = None
    if plan.outer > 1:
        twiddles = _outer_twiddles(plan, u.device)
        u, dc = (_outer_stage(plan, t).view(-1, plan.inner, t.shape[2]) for t in (u, dc))
    batch, _, dim = u.shape
    rows = -(-batch // (2 * plan.outer))  # pairs of one part m of the spectrum
    splits = max(1, min(rows, PROGRAMS // (dim * plan.outer)))
    products = torch.empty(splits, 2, plan.outer, dim, plan.n1, plan.n2, dtype=plan.dtype, device=u.device)
    launch: Any = _products_kernel[(dim, plan.outer, splits)]
    launch(
        u, dc, products, _tables(plan.n1, plan.n2, plan.dtype, u.device), twiddles,
        batch, u.shape[1], dc.shape[1], dim, plan.outer, dim * plan.steps, plan.steps, rows, -(-rows // splits),
        *u.stride(), *dc.stride(),
        N1=plan.n1, N2=plan.n2, ROWS=_rows(plan, dc.shape[1]), OUTER=twiddles is not None,
        DTYPE=_tl_dtype(plan.dtype), num_warps=plan.warps, enable_fp_fusion=True,
    )  # fmt: skip
    real, imaginary = products.sum(0).permute(0, 2, 4, 3, 1).reshape(2, dim, plan.steps)  # k = m + M (k1 + N1 k2)
    return torch.fft.ifft(torch.complex(real, imaginary)).real[:, :taps]


def _kernel_spectrum(plan: Plan, kernel: Tensor) -> Tensor:
    """Real and imaginary part (2, M, D, N1, N2) of the kernel's spectrum divided by N."""
    K = torch.fft.fft(kernel.to(plan.dtype), plan.steps, norm="forward")
    K = K.view(-1, plan.n2, plan.n1, plan.outer).permute(3, 0, 2, 1)
    return torch.stack([K.real, K.imag])


def _rows(plan: Plan, length: int) -> int:
    """Rows of the (N1, N2) matrix that hold the time steps: a power of two, 16 at least."""
    return min(plan.n1, max(16, triton.next_power_of_2(triton.cdiv(length, plan.n2))))


def _tl_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _turned(a: int, b: int, n: int) -> Tensor:
    """exp(-2 pi i j k / n) for j < a, k < b as (2, a, b) in float64."""
    turns = torch.arange(a)[:, None] * torch.arange(b) % n
    angle = turns.double() * (-2 * pi / n)
    return torch.stack([angle.cos(), angle.sin()])


@lru_cache(maxsize=32)
def _tables(n1: int, n2: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """F1 (2, N1, N1), F2 (2, N2, N2) and the twiddle factors (2, N1, N2), one behind the other."""
    tables = [_turned(n1, n1, n1), _turned(n2, n2, n2), _turned(n1, n2, n1 * n2)]
    return torch.cat([table.flatten() for table in tables]).to(device, dtype)


def _outer_twiddles(plan: Plan, device: torch.device) -> Tensor:
    return _outer_tables(plan.outer, plan.inner, plan.dtype, device)[1]


def _outer_matrix(plan: Plan, device: torch.device) -> Tensor:
    return _outer_tables(plan.outer, plan.inner, plan.dtype, device)[0]


@lru_cache(maxsize=8)
def _outer_tables(outer: int, inner: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The DFT of size M, rows (m, part) by columns (part, n), and the twiddle factors (2, M, inner)."""
    real, imaginary = _turned(outer, outer, outer)
    matrix = torch.stack([torch.stack([real, -imaginary], 1), torch.stack([imaginary, real], 1)], 1)
    matrix = matrix.reshape(2 * outer, 2 * outer)
    return matrix.to(device, dtype), _turned(outer, inner, outer * inner).to(device, dtype)


@triton.jit
def _product(ar, ai, br, bi):
    """a * b of two complex matrices of the same shape."""
    return ar * br - ai * bi, ar * bi + ai * br


@triton.jit
def _conjugate_product(ar, ai, br, bi):
    """conj(a) * b."""
    return ar * br + ai * bi, ar * bi - ai * br


@triton.jit
def _dot(ar, ai, br, bi):
    """Complex matrix product."""
    real = tl.dot(ar, br, input_precision="tf32x3", out_dtype=ar.dtype)
    real -= tl.dot(ai, bi, input_precision="tf32x3", out_dtype=ar.dtype)
    imaginary = tl.dot(ar, bi, input_precision="tf32x3", out_dtype=ar.dtype)
    imaginary += tl.dot(ai, br, input_precision="tf32x3", out_dtype=ar.dtype)
    return real, imaginary


@triton.jit
def _load_pair(x, pair, d, batch, length, sb, st, sd, N2: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """Rows 2 pair and 2 pair + 1 of channel d as the parts of (ROWS, N2), zeros where there is nothing."""
    t = tl.arange(0, ROWS)[:, None] * N2 + tl.arange(0, N2)[None, :]
    at = x + d.to(tl.int64) * sd + t.to(tl.int64) * st
    first = 2 * pair.to(tl.int64)
    real = tl.load(at + first * sb, mask=t < length, other=0.0).to(DTYPE)
    imaginary = tl.load(at + (first + 1) * sb, mask=t < tl.where(first + 1 < batch, length, 0), other=0.0).to(DTYPE)
    return real, imaginary


@triton.jit
def _load_outer(twiddles, m, imaginary, N2: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr):
    """Twiddle factors between the stage outside and row m."""
    at = twiddles + m.to(tl.int64) * INNER + tl.arange(0, ROWS)[:, None] * N2 + tl.arange(0, N2)[None, :]
    return tl.load(at), tl.load(at + imaginary)


@triton.jit
def _transform(xr, xi, tables, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr):
    """(W o (F1 X)) F2 of X (ROWS, N2), the other rows zero."""
    k1, k2 = tl.arange(0, N1)[:, None], tl.arange(0, N2)[None, :]
    f1 = tables + k1 * N1 + tl.arange(0, ROWS)[None, :]
    f2 = tables + 2 * N1 * N1 + tl.arange(0, N2)[:, None] * N2 + k2
    w = tables + 2 * N1 * N1 + 2 * N2 * N2 + k1 * N2 + k2
    xr, xi = _dot(tl.load(f1), tl.load(f1 + N1 * N1), xr, xi)
    xr, xi = _product(tl.load(w), tl.load(w + N1 * N2), xr, xi)
    return _dot(xr, xi, tl.load(f2), tl.load(f2 + N2 * N2))


@triton.jit
def _inverse(zr, zi, tables, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr):
    """N times the inverse of ``_transform``, its first ROWS rows."""
    k1, k2 = tl.arange(0, N1)[:, None], tl.arange(0, N2)[None, :]
    f1 = tables + tl.arange(0, ROWS)[:, None] * N1 + tl.arange(0, N1)[None, :]
    f2 = tables + 2 * N1 * N1 + tl.arange(0, N2)[:, None] * N2 + k2
    w = tables + 2 * N1 * N1 + 2 * N2 * N2 + k1 * N2 + k2
    zr, zi = _dot(zr, zi, tl.load(f2), -tl.load(f2 + N2 * N2))
    zr, zi = _conjugate_product(tl.load(w), tl.load(w + N1 * N2), zr, zi)
    return _dot(tl.load(f1), -tl.load(f1 + N1 * N1), zr, zi)


@triton.jit
def _convolution_kernel(
    x, K, y, tables, twiddles, D, after,
    batch, length, dim, outer, imaginary_cells, imaginary_twiddles, sxb, sxt, sxd, syb, syt, syd, sab, sat, sad, sD,
    N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr, ADJOINT: tl.constexpr,
    SKIP: tl.constexpr, AFTER: tl.constexpr, OUTER: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Program (d, pair): y = after * (inverse(transform(x) * K) + D x) for two rows of the batch of one channel."""
    d, pair = tl.program_id(0), tl.program_id(1)
    xr, xi = _load_pair(x, pair, d, batch, length, sxb, sxt, sxd, N2, ROWS, DTYPE)
    cr, ci = xr, xi
    part = pair * 0
    if OUTER:
        part = pair % outer
        wr, wi = _load_outer(twiddles, part, imaginary_twiddles, N2, ROWS, N1 * N2)
        cr, ci = _product(wr, wi, cr, ci)
    cr, ci = _transform(cr, ci, tables, N1, N2, ROWS)
    at = (part.to(tl.int64) * dim + d) * (N1 * N2) + tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]
    kr, ki = tl.load(K + at), tl.load(K + imaginary_cells + at)
    if ADJOINT:
        cr, ci = _conjugate_product(kr, ki, cr, ci)
    else:
        cr, ci = _product(kr, ki, cr, ci)
    cr, ci = _inverse(cr, ci, tables, N1, N2, ROWS)
    if OUTER:
        wr, wi = _load_outer(twiddles, part, imaginary_twiddles, N2, ROWS, N1 * N2)
        cr, ci = _conjugate_product(wr, wi, cr, ci)
    if SKIP:
        skip = tl.load(D + d.to(tl.int64) * sD).to(DTYPE)
        cr += skip * xr
        ci += skip * xi
    if AFTER:
        ar, ai = _load_pair(after, pair, d, batch, length, sab, sat, sad, N2, ROWS, DTYPE)
        cr *= ar
        ci *= ai
    t = tl.arange(0, ROWS)[:, None] * N2 + tl.arange(0, N2)[None, :]
    first = 2 * pair.to(tl.int64)
    out = y + d.to(tl.int64) * syd + t.to(tl.int64) * syt + first * syb
    tl.store(out, cr, mask=t < length)
    tl.store(out + syb, ci, mask=t < tl.where(first + 1 < batch, length, 0))


@triton.jit
def _products_kernel(
    u, v, products, tables, twiddles,
    batch, length_u, length_v, dim, outer, cells, imaginary_twiddles, rows, rows_a_split, sub, sut, sud, svb, svt, svd,
    N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr, OUTER: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Program (d, m, split): the sum over its pairs of rows of conj(transform(u)) * transform(v)."""
    d, m, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    real = tl.zeros((N1, N2), DTYPE)
    imaginary = tl.zeros((N1, N2), DTYPE)
    begin = split * rows_a_split
    for row in range(begin, tl.minimum(begin + rows_a_split, rows)):
        pair = row * outer + m
        ur, ui = _load_pair(u, pair, d, batch, length_u, sub, sut, sud, N2, ROWS, DTYPE)
        vr, vi = _load_pair(v, pair, d, batch, length_v, svb, svt, svd, N2, ROWS, DTYPE)
        if OUTER:
            wr, wi = _load_outer(twiddles, m, imaginary_twiddles, N2, ROWS, N1 * N2)
            ur, ui = _product(wr, wi, ur, ui)
            vr, vi = _product(wr, wi, vr, vi)
        ur, ui = _transform(ur, ui, tables, N1, N2, ROWS)
        vr, vi = _transform(vr, vi, tables, N1, N2, ROWS)
        pr, pim = _conjugate_product(ur, ui, vr, vi)
        real += pr
        imaginary += pim
    out = products + split.to(tl.int64) * 2 * cells
    at = (m.to(tl.int64) * dim + d) * (N1 * N2) + tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]
    tl.store(out + at, real)
    tl.store(out + cells + at, imaginary)
