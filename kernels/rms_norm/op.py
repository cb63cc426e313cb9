"""RMS normalisation and its gated form, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, check_shape, compute_dtype, is_plain_step
from zoo.kernels.native import in_rows
from zoo.kernels.operator import Like, define
from zoo.kernels.rms_norm import fused, native, reference
from zoo.kernels.stand_in import on_cpu
from zoo.kernels.triton_support import triton_implementation

SMALL = 1 << 16  # elements: below, on the CPU, torch's own functions take less time than the call of an operator


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    z: Tensor | None = None,
    num_groups: int = 1,
    norm_before_gate: bool = False,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    r"""Divide by the root mean square over the last axis, with the gate of Mamba-2 where z is given.

    .. math::
        n(u) = \frac{u}{\sqrt{\mathrm{mean}(u^2) + \epsilon}}, \quad
        y = w \odot n(x \odot \mathrm{silu}(z)) \;\text{ or }\; w \odot n(x) \odot \mathrm{silu}(z)

    Args:
        x: input (..., D), any floating dtype; sums are float32 (float64 if any input is float64).
        weight: (D,); the normalised values are rounded to its dtype before they are multiplied. No weight: ones.
        z: gate (..., D), of the shape of x.
        num_groups: parts of the last axis, each with its own mean; a divisor of D.
        norm_before_gate: the second form instead of the first.
        eps: added to the mean of squares.
        impl: "auto" or the name of an implementation ("triton", "native", "fused", "reference"). "auto" on the CPU
            computes inputs below 2^16 elements with torch's functions, outside the operator.

    Returns:
        (..., D) in the dtype of the weight, of x without one.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or groups that do not divide D.
        RuntimeError: when the named implementation cannot run on the device of x.

    Papers: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467; the gate: Dao and Gu,
    "Transformers are SSMs", arXiv 2405.21060.
    """
    impl = _check(x, weight, z, num_groups, impl)
    dtype = (x if weight is None else weight).dtype
    direct = impl == "auto" and on_cpu(x.device) and not torch.compiler.is_compiling()
    if direct and x.numel() < SMALL:  # a traced size is not to be asked
        if z is not None and is_plain_step(impl, x, weight, z) and x.numel() and native.obstacle(x.device) is None:
            rows, factor, gate = in_rows(torch.float32, _rows(x), weight, _rows(z))
            y = native.forward(rows, factor, gate, num_groups, norm_before_gate, eps, dtype)
            return y.view(x.shape).to(dtype)
        wide = compute_dtype(x, weight, z)
        z = z if z is None else z.to(wide)
        return fused.forward(x.to(wide), weight, z, num_groups, norm_before_gate, eps, dtype).to(dtype)
    return _rms_norm(_rows(x), weight, _rows(z), num_groups, norm_before_gate, eps, dtype, impl).view(x.shape)


operation = Operation(
    "rms_norm",
    triton_implementation("zoo.kernels.rms_norm.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=in_rows),
    Implementation("fused", fused.forward, fused.backward),
    Implementation("reference", reference.forward),
)


def _shapes(
    x: Tensor,
    weight: Tensor | None,
    z: Tensor | None,
    num_groups: int,
    norm_before_gate: bool,
    eps: float,
    dtype: torch.dtype,
) -> Like:
    """x and z in rows: (1, M, D)."""
    return Like(x, dtype=dtype)


def _flops(x, *_) -> int:
    """Square, sum and two factors for each element; the gate is not counted."""
    return 4 * prod(x)


_rms_norm = define(operation, "x weight z", _shapes, flops=_flops)


def _rows(tensor: Tensor | None) -> Tensor | None:
    """(1, M, D): a view where the axes before the last lie evenly, so also for a part of a wider projection."""
    return tensor if tensor is None else tensor.reshape(1, -1, tensor.shape[-1])


def _check(x, weight, z, num_groups, impl) -> str:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"rms_norm: x must have shape (..., D) with D at least 1, got {tuple(x.shape)}")
    if weight is not None and weight.shape != x.shape[-1:]:
        check_shape("rms_norm", "weight", weight, "(D,)", x.shape[-1])
    if z is not None and z.shape != x.shape:
        check_shape("rms_norm", "z", z, "(..., D) of x", *x.shape)
    if num_groups < 1 or x.shape[-1] % num_groups:
        raise ValueError(f"rms_norm: num_groups must divide D, got {num_groups} groups for D {x.shape[-1]}")
    return operation.check(impl, x=x, weight=weight, z=z)
