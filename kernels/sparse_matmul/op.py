"""The product with a sparse matrix, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, as_given, check_shape
from zoo.kernels.operator import Like, define
from zoo.kernels.sparse_matmul import native, reference
from zoo.kernels.triton_support import triton_implementation


def sparse_matmul(
    x: Tensor,
    values: Tensor,
    mask: Tensor,
    start: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""A linear layer whose matrix is stored without its zeros: loaded sparse, computed dense.

    .. math::
        y_n = \sum_c w_{nc} x_c + b_n, \quad w_{nc} = v_{k(n, c)} \text{ where the mask has a bit, } 0 \text{ elsewhere}

    with k(n, c) the number of bits before it, row after row.

    Args:
        x: (..., C), any floating dtype; sums are float32 (float64 if x or the values are).
        values: v (K,), any floating dtype, as many as there are bits.
        mask: (N, ceil(C / 8)) uint8: column 8 i + k of a row is bit k of byte i.
        start: (N + 1,) int32: where the values of each row begin, and their end (``row_starts``); None where all rows
            have K / N.
        bias: (N,).
        impl: "auto" or the name of an implementation ("triton", "native", "reference"). "auto" on the CPU computes few
            rows that need no gradient outside the operator.

    Returns:
        (..., N) in the dtype of x.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together.
        RuntimeError: when the named implementation cannot run on the device of x.

    Values are not counted on each call: rows whose bits and values disagree give NaN, or an error of torch's.

    Paper: Xia et al., "Flash-LLM", arXiv 2309.10285.
    """
    impl = _check(x, values, mask, start, bias, impl)
    rows = x.reshape(-1, x.shape[-1])
    if direct := operation.direct(impl, rows.shape[0], native.FEW, rows, values):
        y = direct.forward(rows, values, mask, start).to(x.dtype)
    else:
        y = _sparse_matmul(rows, values, mask, start, impl)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.view(*x.shape[:-1], y.shape[-1])


operation = Operation(
    "sparse_matmul",
    triton_implementation("zoo.kernels.sparse_matmul.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle, prepare=as_given),
    Implementation("reference", reference.forward),
)


def _shapes(x: Tensor, values: Tensor, mask: Tensor, start: Tensor | None) -> Like:
    return Like(x, (x.shape[0], mask.shape[0]))


def _flops(x, values, *_) -> int:
    """A multiplication and an addition for each value and row; products with 0 are not counted."""
    return 2 * x[0] * values[0]


_sparse_matmul = define(operation, "x values", _shapes, flops=_flops)


def _check(x, values, mask, start, bias, impl) -> str:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"sparse_matmul: x must have shape (..., C) with C at least 1, got {tuple(x.shape)}")
    check_shape("sparse_matmul", "values", values, "(K,)", None)
    check_shape("sparse_matmul", "mask", mask, "(N, ceil(C / 8))", None, -(-x.shape[-1] // 8))
    check_shape("sparse_matmul", "start", start, "(N + 1,)", len(mask) + 1)
    check_shape("sparse_matmul", "bias", bias, "(N,)", len(mask))
    if mask.dtype != torch.uint8 or (start is not None and start.dtype != torch.int32):
        found = [t.dtype for t in (mask, start) if t is not None]
        raise ValueError(f"sparse_matmul: mask must be uint8 and start int32, got {found}")
    if start is None and len(mask) and len(values) % len(mask):
        raise ValueError(
            f"sparse_matmul: {len(mask)} rows cannot have equally many of {len(values)} values: give "
            "start=row_starts(...)"
        )
    return operation.check(impl, {"mask": mask, "start": start}, x=x, values=values, bias=bias)
