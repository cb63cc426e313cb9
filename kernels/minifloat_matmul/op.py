"""The product with floating-point numbers of a few bits, dispatched over its implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.dispatch import Implementation, Operation, as_given, check_shape
from zoo.kernels.lowbit_matmul import row_bytes
from zoo.kernels.minifloat_matmul import native, reference


def minifloat_matmul(
    x: Tensor, codes: Tensor, scale: Tensor, kind: Minifloat, *, bias: Tensor | None = None, impl: str = "auto"
) -> Tensor:
    r"""A linear layer whose matrix is floating-point numbers of up to 8 bits, with a scale for each group of columns.

    .. math::
        y_n = \sum_g s_{ng} \sum_{c \in g} \mathrm{value}(q_{nc}) \, x_c + b_n

    Args:
        x: (..., C), any floating dtype; sums are float32 (float64 if x or the scale is float64).
        codes: q (N, bytes) uint8, packed by ``lowbit_matmul.pack``; the highest bit of a code is the sign.
        scale: s (N, G), any floating dtype; G equal groups of columns.
        kind: what the other bits are; up to 5 of exponent.
        bias: (N,).
        impl: "auto" or the name of an implementation ("native", "reference"). "auto" takes the native one, which has
            no gradient, for few rows on the CPU that are neither recorded, transformed nor compiled.

    Returns:
        (..., N) in the dtype of x.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or a kind of more than 8 bits or 5 of
            exponent.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: "Low-Bitwidth Floating Point Quantization for Efficient High-Quality Diffusion Models", arXiv 2408.06995.
    """
    _check(x, codes, scale, kind, bias, impl)
    rows, chosen = x.reshape(-1, x.shape[-1]), operation.choice(impl)
    if chosen == "auto":
        chosen = "native" if operation.direct(chosen, rows.shape[0], rows.shape[0], x, scale) else "reference"
    y = operation.resolve(chosen, x.device).forward(rows, codes, scale, kind)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.view(*x.shape[:-1], len(codes))


operation = Operation(
    "minifloat_matmul",
    Implementation("native", native.forward, obstacle=native.obstacle, prepare=as_given),
    Implementation("reference", reference.forward, prepare=as_given),
)


def _check(x, codes, scale, kind, bias, impl) -> None:
    if kind.bits > 8 or kind.exponent_bits > 5:
        raise ValueError(f"minifloat_matmul: kind must have up to 8 bits and 5 of exponent, got {kind}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"minifloat_matmul: x must have shape (..., C) with C at least 1, got {tuple(x.shape)}")
    check_shape("minifloat_matmul", "codes", codes, "(N, bytes of C codes)", None, row_bytes(x.shape[-1], kind.bits))
    check_shape("minifloat_matmul", "scale", scale, "(N, G)", codes.shape[0], None)
    check_shape("minifloat_matmul", "bias", bias, "(N,)", codes.shape[0])
    if codes.dtype != torch.uint8:
        raise ValueError(f"minifloat_matmul: codes must be uint8, got {codes.dtype}")
    if scale.shape[1] == 0 or x.shape[-1] % scale.shape[1]:
        raise ValueError(
            f"minifloat_matmul: the {scale.shape[1]} groups of a row must divide its {x.shape[-1]} columns"
        )
    operation.check(impl, {"codes": codes}, x=x, scale=scale, bias=bias)
