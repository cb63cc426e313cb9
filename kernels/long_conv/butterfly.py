r"""Long convolution in a learned basis: the butterfly extension of FlashButterfly.

The Monarch decomposition of the DFT, with its dense matrices given by the caller:

.. math:: y = \mathrm{Re} \; B'^{-1}\big( B(u) \cdot B(k) \big)

Stage p of B multiplies by the matrix Fp along one axis of the signal seen as (N1, ..., Np, ...), then by the fixed
twiddle factors. With the DFT matrices of ``dft_factors`` it is the convolution of ``long_conv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import as_dtype, check_device, check_floating, check_shape, compute_dtype
from zoo.kernels.long_conv.spectral import with_skip_and_gate


def butterfly_conv(
    u: Tensor,
    kernel: Tensor,
    factors: Sequence[Tensor],
    *,
    kernel_factors: Sequence[Tensor] | None = None,
    inverse_factors: Sequence[Tensor] | None = None,
    D: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """y = gate * (Re inverse(butterfly(u) * butterfly(kernel)) + D u), differentiable in everything by autograd.

    Args:
        u: (B, T, D), any floating dtype; computed in float32 (float64 if u, kernel, D or gate is float64).
        kernel: (D, L).
        factors: matrices (Np, Np), or (D, Np, Np) for one a channel, real or complex, from stage 1 on. Their sizes
            multiply to N >= max(T, L), where both are padded with zeros to. With the DFT matrices of ``dft_factors``
            the convolution is causal from N = T + L - 1 on, and circular for N = T. Others mix the whole row.
        kernel_factors: those of the kernel's transform; ``factors`` when None.
        inverse_factors: those of the inverse, in the order of ``factors``; their conjugate transposes divided by Np
            when None, which inverts DFT matrices.
        D: skip weight (D,).
        gate: (B, T, D).

    Returns:
        y (B, T, D) in the dtype of u.

    Raises:
        ValueError: for tensors that do not fit together.

    Paper: Fu et al., arXiv 2302.06646, section 4.
    """
    check_shape("butterfly_conv", "u", u, "(B, T, D)", None, None, None)
    batch, length, dim = u.shape
    check_shape("butterfly_conv", "kernel", kernel, "(D, L)", dim, None)
    check_shape("butterfly_conv", "D", D, "(D,)", dim)
    check_shape("butterfly_conv", "gate", gate, "(B, T, D)", batch, length, dim)
    check_floating("butterfly_conv", u=u, kernel=kernel, D=D, gate=gate)
    check_device("butterfly_conv", u=u, kernel=kernel, D=D, gate=gate)
    if inverse_factors is None:
        inverse_factors = [f.mH / f.shape[-1] for f in factors]
    kernel_factors = factors if kernel_factors is None else kernel_factors
    sizes = [f.shape[-1] for f in factors]
    for name, given in (("factors", factors), ("kernel_factors", kernel_factors), ("inverse_factors", inverse_factors)):
        _check_factors(name, given, sizes, dim, max(length, kernel.shape[1]))
    dtype, of_result = compute_dtype(u, kernel, D, gate), u.dtype
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    u, kernel, D, gate = as_dtype(dtype, u, kernel, D, gate)  # type: ignore[assignment]

    forward, of_kernel, inverse = (
        [f.to(complex_dtype) for f in given] for given in (factors, kernel_factors, inverse_factors)
    )
    spectrum = butterfly(u.mT.to(complex_dtype), forward) * butterfly(kernel.to(complex_dtype), of_kernel)
    y = inverse_butterfly(spectrum, inverse)[..., :length].real.mT
    return with_skip_and_gate(y, u, D, gate).to(of_result)


def dft_factors(
    *sizes: int, dtype: torch.dtype = torch.complex64, device: torch.device | str | None = None
) -> tuple[Tensor, ...]:
    """The DFT matrices exp(-2 pi i a b / Np) of these sizes: the factors that make the butterfly the transform."""
    return tuple(_roots(torch.arange(n)[:, None] * torch.arange(n), n).to(device, dtype) for n in sizes)


def butterfly(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Complex (..., D, time <= N) to (..., D, N), the frequencies in the order (k1, k2, ...)."""
    left = prod(f.shape[-1] for f in factors)
    shape, found = (*x.shape[:-1], left), 1
    x = F.pad(x, (0, left - x.shape[-1]))
    for factor in factors:
        size = factor.shape[-1]
        left //= size
        x = _matrix(factor) @ x.reshape(*shape[:-1], found, size, left)
        x = x * _twiddles(size, left, x)
        found *= size
    return x.reshape(shape)


def inverse_butterfly(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The stages of ``butterfly`` in the opposite order, each with its inverse matrix and conjugate twiddles."""
    shape, left = x.shape, 1
    for factor in reversed(factors):
        size = factor.shape[-1]
        x = x.reshape(*shape[:-1], -1, size, left)
        x = _matrix(factor) @ (x * _twiddles(size, left, x).conj())
        left *= size
    return x.reshape(shape)


def _matrix(factor: Tensor) -> Tensor:
    return factor if factor.dim() == 2 else factor[:, None]  # (D, 1, n, n) against (..., D, found, n, left)


def _twiddles(size: int, left: int, like: Tensor) -> Tensor:
    """exp(-2 pi i k n / (size left)) for the frequency k found and the time n left."""
    return _roots(torch.arange(size)[:, None] * torch.arange(left), size * left).to(like.device, like.dtype)


def _roots(turns: Tensor, n: int) -> Tensor:
    """exp(-2 pi i turns / n) in complex128."""
    angle = (turns % n).double() * (-2 * pi / n)
    return torch.polar(torch.ones_like(angle), angle)


def _check_factors(name: str, factors: Sequence[Tensor], sizes: list[int], dim: int, least: int) -> None:
    for index, (factor, size) in enumerate(zip(factors, sizes, strict=False)):
        layout, wanted = ("(N, N)", (size, size)) if factor.dim() == 2 else ("(D, N, N)", (dim, size, size))
        check_shape("butterfly_conv", f"{name}[{index}]", factor, layout, *wanted)
    if len(factors) != len(sizes) or prod(sizes) < least:
        raise ValueError(
            f"butterfly_conv: {name} must be {len(sizes)} matrices with a product of sizes of at least max(T, L) = "
            f"{least}, got {len(factors)} with {prod(sizes)}"
        )
