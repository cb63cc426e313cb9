"""The product with packed integers, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, as_given, check_shape
from zoo.kernels.lowbit_matmul import native, reference, tiled
from zoo.kernels.lowbit_matmul.packing import check_bits, row_bytes
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


def lowbit_matmul(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    bits: int,
    bias: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""A linear layer whose matrix is integers of 1 to 8 bits, with a scale and a zero for each group of columns.

    .. math::
        y_n = \sum_g s_{ng} \sum_{c \in g} (q_{nc} - z_{ng}) x_c + b_n

    Args:
        x: (..., C), any floating dtype; sums are float32 (float64 if x or the scale is float64).
        codes: q (N, bytes) uint8, packed by ``pack``; they have no gradient.
        scale: s (N, G), any floating dtype; G equal groups of columns, of any size.
        zero: z (N, G) uint8, the code of the number 0; None for :math:`2^{bits-1}`.
        bits: of a code, 1 to 8.
        bias: (N,).
        impl: "auto" or the name of an implementation ("triton", "native", "tiled", "reference"). "auto" on the CPU
            computes few rows that need no gradient outside the operator.

    Returns:
        (..., N) in the dtype of x.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, bits outside [1, 8], or groups that do not
            divide C.
        RuntimeError: when the named implementation cannot run on the device of x.

    Layout of the codes: ``packing``. Weights of any width by group: "Tilus", arXiv 2504.12984; sums over groups of
    integers that are scaled once: "LUT-GEMM", arXiv 2206.09557, equation 1.
    """
    impl = _check(x, codes, scale, zero, bits, bias, impl)
    rows = x.reshape(-1, x.shape[-1])
    if direct := operation.direct(impl, rows.shape[0], native.FEW, rows, scale):
        y = direct.forward(rows, scale, codes, zero, bits, False).to(x.dtype)
    else:
        y = _lowbit_matmul(rows, scale, codes, zero, bits, scale.requires_grad, impl)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.view(*x.shape[:-1], y.shape[-1])


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, bits: int, columns: int) -> Tensor:
    r"""The matrix that codes stand for: :math:`w = s (q - z)`, with a scale s and a zero z for each group of a row.

    Args:
        codes: (..., N, bytes) uint8, of ``pack``.
        scale: (..., N, G), any floating dtype; G equal groups of columns.
        zero: (..., N, G) integers: the code of the number 0; None for :math:`2^{bits-1}`.
        bits: of a code.
        columns: C, of which a row has codes.

    Returns:
        (..., N, C) float32, or float64 of a float64 scale; a few rows on the CPU, as a step looks up, by a C function.
    """
    few = codes.shape[0] if codes.dim() == 2 and columns else 0
    if operation.direct(operation.choice("auto"), few, native.FEW, codes, scale):
        return native.dequantise(codes, scale, zero, bits=bits, columns=columns, dtype=torch.float32)
    return reference.dequantise(codes, scale, zero, bits=bits, columns=columns)


operation = Operation(
    "lowbit_matmul",
    triton_implementation("zoo.kernels.lowbit_matmul.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=as_given),
    Implementation("tiled", tiled.forward, tiled.backward, prepare=as_given),
    Implementation("reference", reference.forward),
)


def _shapes(x: Tensor, scale: Tensor, codes: Tensor, zero: Tensor | None, bits: int, learns_scale: bool) -> Like:
    return Like(x, (x.shape[0], codes.shape[0]))


def _flops(x, scale, codes, *_) -> int:
    """A multiplication and an addition for each code and row."""
    return 2 * x[0] * x[1] * codes[0]


_lowbit_matmul = define(operation, "x scale", _shapes, flops=_flops)


def _check(x, codes, scale, zero, bits, bias, impl) -> str:
    check_bits("lowbit_matmul", bits)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"lowbit_matmul: x must have shape (..., C) with C at least 1, got {tuple(x.shape)}")
    columns = x.shape[-1]
    check_shape("lowbit_matmul", "codes", codes, "(N, bytes of C codes)", None, row_bytes(columns, bits))
    check_shape("lowbit_matmul", "scale", scale, "(N, G)", codes.shape[0], None)
    check_shape("lowbit_matmul", "zero", zero, "(N, G)", *scale.shape)
    check_shape("lowbit_matmul", "bias", bias, "(N,)", codes.shape[0])
    if codes.dtype != torch.uint8 or (zero is not None and zero.dtype != torch.uint8):
        found = [t.dtype for t in (codes, zero) if t is not None]
        raise ValueError(f"lowbit_matmul: codes and zero must be uint8, got {found}")
    if scale.shape[1] == 0 or columns % scale.shape[1]:
        raise ValueError(f"lowbit_matmul: the {scale.shape[1]} groups of a row must divide its {columns} columns")
    return operation.check(impl, {"codes": codes, "zero": zero}, x=x, scale=scale, bias=bias)
