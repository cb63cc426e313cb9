"""Rotary position embedding, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, check_shape, compute_dtype
from zoo.kernels.native import in_rows
from zoo.kernels.operator import Like, define
from zoo.kernels.rope import halves, native, reference
from zoo.kernels.stand_in import on_cpu
from zoo.kernels.triton_support import triton_implementation

SMALL = 1 << 17  # elements: below, on the CPU, torch's own functions take less time than the call of an operator


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, impl: str = "auto") -> Tensor:
    r"""Turn pairs of channels by angles that grow with the position.

    .. math:: (y_a, y_b) = (x_a \cos\theta - x_b \sin\theta, \; x_b \cos\theta + x_a \sin\theta)

    Args:
        x: input (B, T, H, K), any floating dtype; computed in float32 (float64 if any input is float64).
        cos, sin: of the angles of the P pairs, 2 P <= K, at each step: (T, P) or (B, T, P), the same for all heads.
            Constants: they have no gradient. The channels of x from 2 P on are returned as they are.
        interleaved: pair i is the channels (2i, 2i + 1), as in the paper, instead of (i, i + P), as in GPT-NeoX.
        impl: "auto" or the name of an implementation ("triton", "native", "halves", "reference"). "auto" on the CPU
            computes inputs below 2^17 elements with torch's functions, outside the operator.

    Returns:
        (B, T, H, K) in the dtype of x. Its gradient is the rotation by the negative angles.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or a cos or sin that requires a gradient.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: Su et al., "RoFormer", arXiv 2104.09864.
    """
    impl = _check(x, cos, sin, impl)
    direct = impl == "auto" and on_cpu(x.device) and not torch.compiler.is_compiling()
    if direct and x.numel() < SMALL:  # a traced size is not to be asked
        if x.dtype == cos.dtype == sin.dtype and x.dtype.itemsize >= 4:
            return halves.differentiable(x, cos, sin, interleaved)
        wide = compute_dtype(x, cos, sin)
        return halves.differentiable(x.to(wide), cos.to(wide), sin.to(wide), interleaved).to(x.dtype)
    return _rope(x, cos, sin, interleaved, impl)


operation = Operation(
    "rope",
    triton_implementation("zoo.kernels.rope.triton"),
    Implementation("native", native.forward, native.forward, native.obstacle, prepare=in_rows),
    Implementation("halves", halves.forward, halves.forward),
    Implementation("reference", reference.forward),
)


def _shapes(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Like:
    return Like(x)


def _flops(x, cos, *_) -> int:
    """Four products and two sums for each pair."""
    return 6 * prod(x[:3]) * cos[-1]


_rope = define(
    operation, "x", _shapes, flops=_flops, adjoint=lambda dy, cos, sin, interleaved: (dy, cos, -sin, interleaved)
)


def _check(x, cos, sin, impl) -> str:
    shape, table = x.shape, cos.shape
    if len(shape) != 4 or (table[:-1] != shape[1:2] and table[:-1] != shape[:2]):
        check_shape("rope", "x", x, "(B, T, H, K)", None, None, None, None)
        steps = x.shape[:2] if cos.dim() == 3 else x.shape[1:2]
        check_shape("rope", "cos", cos, "(B, T, P)" if cos.dim() == 3 else "(T, P)", *steps, None)
    if sin.shape != table:
        check_shape("rope", "sin", sin, "that of cos", *cos.shape)
    if not 0 < 2 * table[-1] <= shape[-1]:
        raise ValueError(f"rope: cos and sin must have from 1 to K / 2 pairs, got {table[-1]} for K {shape[-1]}")
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("rope: cos and sin must be constants, got one that requires a gradient; detach it")
    return operation.check(impl, x=x, cos=cos, sin=sin)
