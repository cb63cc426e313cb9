"""The long convolution, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, Sizes, as_dtype, compute_dtype
from zoo.kernels.long_conv import fft, monarch, native, reference, spectral
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


def long_conv(
    u: Tensor,
    kernel: Tensor,
    *,
    D: Tensor | None = None,
    gate: Tensor | None = None,
    circular: bool = False,
    impl: str = "auto",
) -> Tensor:
    r"""Convolution of each channel with a kernel as long as the sequence, by fast Fourier transforms.

    .. math::
        y_t = g_t \Big( \sum_{j=0}^{\min(t, L-1)} k_j u_{t-j} + D u_t \Big)

    With ``circular`` the sum runs over all j < L and :math:`u_{t-j}` over the indices modulo T. The skip comes before
    the gate: ``y = gate * (convolution + D * u)``.

    Args:
        u: input (B, T, D), any floating dtype; transforms and sums are float32 (float64 if any input is float64).
        kernel: (D, L), the taps of each channel, tap j acting on the input j steps back. Any L when causal: the taps
            from T on meet no input, are ignored and get the gradient 0. At most T when circular.
        D: skip weight (D,).
        gate: (B, T, D), multiplies the result.
        impl: "auto" or the name of an implementation: "triton", "native" (C), "fft" (torch.fft in cached blocks),
            "monarch" (small dense matrix products) or "reference". A single time step is one product and has one
            implementation.

    Returns:
        y (B, T, D) in the dtype of u, differentiable in all tensors. A transform mixes all steps of a row, so that
        "causal" holds up to its rounding: about 1e-7 of the largest value of the row in float32.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or an empty sequence or kernel. Packed
            sequences are not supported: no transform restarts inside a row.
        RuntimeError: when the named implementation cannot run on the device of u.

    Papers: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", arXiv 2302.06646; Fu et
    al., "FlashFFTConv", arXiv 2311.05908.
    """
    _check(u, kernel, D, gate, circular, impl)
    if u.shape[1] == 1:
        dtype = compute_dtype(u, kernel, D, gate)
        x, k, skip, g = as_dtype(dtype, u, kernel[:, 0], D, gate)
        return spectral.with_skip_and_gate(x * k, x, skip, g).to(u.dtype)  # type: ignore[operator]
    of_any_length = isinstance(u.shape[1], torch.SymInt) and torch.compiler.is_exporting()
    return _long_conv(u, kernel if of_any_length else kernel[:, : u.shape[1]], D, gate, circular, impl)


operation = Operation(
    "long_conv",
    triton_implementation("zoo.kernels.long_conv.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=native.prepare),
    Implementation("fft", fft.forward, fft.backward, prepare=as_dtype),
    Implementation("monarch", monarch.forward, monarch.backward),
    Implementation("reference", reference.forward),
)


def _shapes(u: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, circular: bool) -> Like:
    return Like(u)


def _flops(u, kernel, D, gate, circular, *_) -> int:
    """Three real FFTs of n steps (kernel once a channel, input and output once a row) and the spectra's product."""
    batch, length, dim = u
    n = length if circular else length + kernel[1] - 1
    return int(dim * ((2 * batch + 1) * 2.5 * n * log2(max(n, 2)) + 3 * batch * n))


_long_conv = define(operation, "u kernel D gate", _shapes, flops=_flops)


def _check(u, kernel, D, gate, circular, impl) -> None:
    sizes = Sizes("long_conv")
    sizes.check("BTD", u=u)
    sizes.check("DL", kernel=kernel)
    sizes.check("D", D=D)
    sizes.check("BTD", gate=gate)
    operation.check(impl, u=u, kernel=kernel, D=D, gate=gate)
    length, taps = sizes["T"], sizes["L"]
    if length == 0 or taps == 0:
        raise ValueError(f"long_conv: T and L must be at least 1, got T {length}, L {taps}")
    if circular and taps > length:
        raise ValueError(f"long_conv: a circular kernel must have at most T = {length} taps, got L = {taps}")
