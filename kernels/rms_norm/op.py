"""RMS normalisation and its gated form, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from zoo.kernels.autograd import recomputed_gradients
from zoo.kernels.dispatch import Implementation, Operation, check_floating, check_shape, compute_dtype
from zoo.kernels.native import in_rows
from zoo.kernels.rms_norm import fused, native, reference
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
    _check(x, weight, z, num_groups)
    small = not torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() < SMALL
    if small and operation.choice(impl) == "auto":
        wide, dtype = compute_dtype(x, weight, z), (x if weight is None else weight).dtype
        z = z if z is None else z.to(wide)
        return fused.forward(x.to(wide), weight, z, num_groups, norm_before_gate, eps, dtype).to(dtype)
    return _rms_norm(x, weight, z, num_groups, norm_before_gate, eps, impl)


def _reference_backward(dy, x, weight, z, *options) -> tuple[Tensor | None, ...]:
    forward = partial(_reference_of_three, options=options)
    found = iter(recomputed_gradients(forward, (x, weight, z), (dy,)))
    return tuple(None if t is None else next(found) for t in (x, weight, z))


def _reference_of_three(x, weight, z, options) -> tuple[Tensor]:
    return (reference.forward(x, weight, z, *options).to(x.dtype),)


operation = Operation(
    "rms_norm",
    triton_implementation("zoo.kernels.rms_norm.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=in_rows),
    Implementation("fused", fused.forward, fused.backward),
    Implementation("reference", reference.forward, _reference_backward),
)


@torch.library.custom_op("zoo::rms_norm", mutates_args=())
def _rms_norm(
    x: Tensor, weight: Tensor | None, z: Tensor | None, num_groups: int, norm_before_gate: bool, eps: float, impl: str
) -> Tensor:
    chosen, dtype = operation.resolve(impl, x.device), (x if weight is None else weight).dtype
    if x.numel() == 0:
        return x.new_empty(x.shape, dtype=dtype)
    tensors = chosen.prepare(compute_dtype(x, weight, z), _rows(x), weight, _rows(z))
    y = chosen.forward(*tensors, num_groups, norm_before_gate, eps, dtype)
    return y.to(dtype).reshape(x.shape).contiguous()


@torch.library.custom_op("zoo::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    z: Tensor | None,
    num_groups: int,
    norm_before_gate: bool,
    eps: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and z; of what is None, an empty tensor."""
    chosen, dtype = operation.resolve(impl, x.device), (x if weight is None else weight).dtype
    inputs = (x, weight, z)
    if x.numel() == 0:
        return tuple(x.new_zeros(0) if t is None else torch.zeros_like(t) for t in inputs)  # type: ignore[return-value]
    tensors = chosen.prepare(compute_dtype(x, weight, z), _rows(dy), _rows(x), weight, _rows(z))
    gradients = chosen.backward(*tensors, num_groups, norm_before_gate, eps, dtype)
    return tuple(  # type: ignore[return-value]
        x.new_empty(0) if t is None else g.to(t.dtype).reshape(t.shape).contiguous()
        for t, g in zip(inputs, gradients, strict=True)
    )


@_rms_norm.register_fake
def _(x, weight, z, num_groups, norm_before_gate, eps, impl):
    return x.new_empty(x.shape, dtype=(x if weight is None else weight).dtype)


@_rms_norm_backward.register_fake
def _(dy, x, weight, z, num_groups, norm_before_gate, eps, impl):
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, weight, z))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_groups, ctx.norm_before_gate, ctx.eps, ctx.impl = inputs
    ctx.given = [t is not None for t in tensors]
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    gradients = _rms_norm_backward(
        dy, *ctx.saved_tensors, ctx.num_groups, ctx.norm_before_gate, ctx.eps, ctx.impl
    )  # fmt: skip
    return *(g if given else None for g, given in zip(gradients, ctx.given, strict=True)), None, None, None, None


_rms_norm.register_autograd(_backward, setup_context=_setup_context)


def _rows(tensor: Tensor | None) -> Tensor | None:
    """(1, M, D): a view where the axes before the last lie evenly, so also for a part of a wider projection."""
    return tensor if tensor is None else tensor.reshape(1, -1, tensor.shape[-1])


def _check(x, weight, z, num_groups) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"rms_norm: x must have shape (..., D) with D at least 1, got {tuple(x.shape)}")
    if weight is not None and weight.shape != x.shape[-1:]:
        check_shape("rms_norm", "weight", weight, "(D,)", x.shape[-1])
    if z is not None and z.shape != x.shape:
        check_shape("rms_norm", "z", z, "(..., D) of x", *x.shape)
    check_floating("rms_norm", x=x, weight=weight, z=z)
    if num_groups < 1 or x.shape[-1] % num_groups:
        raise ValueError(f"rms_norm: num_groups must divide D, got {num_groups} groups for D {x.shape[-1]}")
