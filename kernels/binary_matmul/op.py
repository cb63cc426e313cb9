"""The product with scaled signs, dispatched over its implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.binary_matmul import native, reference
from zoo.kernels.dispatch import Implementation, Operation, as_given, check_shape


def binary_matmul(
    x: Tensor,
    planes: Tensor,
    alpha: Tensor,
    offset: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""A linear layer whose matrix is a sum of scaled matrices of signs, as many as a weight has bits.

    .. math::
        y_n = \sum_g \Big( \sum_p \alpha_{ngp} \sum_{c \in g} b_{npc} x_c + o_{ng} \sum_{c \in g} x_c \Big) + \beta_n,
        \quad b_{npc} \in \{-1, 1\}

    Args:
        x: (..., C), any floating dtype; sums are float32 (float64 if x or alpha is float64).
        planes: b (N, P, ceil(C / 8)) uint8, of ``pack_planes``.
        alpha: (N, G, P); G equal groups of columns.
        offset: o (N, G); None for 0.
        bias: beta (N,).
        impl: "auto" or the name of an implementation ("native", "reference"). "auto" takes the native one, which looks
            sums up in tables and has no gradient, for few rows of float32 on the CPU, in groups of whole bytes, that
            are neither recorded, transformed nor compiled.

    Returns:
        (..., N) in the dtype of x.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or that the named implementation does not
            take.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: Park et al., "LUT-GEMM: Quantized Matrix Multiplication based on LUTs for Efficient Inference in Large-Scale
    Generative Language Models", arXiv 2206.09557; there a table serves eight columns, here four.
    """
    _check(x, planes, alpha, offset, bias, impl)
    rows, chosen = x.reshape(-1, x.shape[-1]), operation.choice(impl)
    fits = native.fits(x, alpha)
    if chosen == "native" and not fits:
        raise ValueError(
            "binary_matmul: the implementation 'native' takes float32 and narrower, in groups of whole bytes, got "
            f"{x.shape[-1]} columns of {x.dtype} in {alpha.shape[1]} groups"
        )
    if chosen == "auto":
        chosen = "native" if fits and operation.direct(chosen, rows.shape[0], rows.shape[0], x, alpha) else "reference"
    y = operation.resolve(chosen, x.device).forward(rows, planes, alpha, offset)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.view(*x.shape[:-1], len(planes))


operation = Operation(
    "binary_matmul",
    Implementation("native", native.forward, obstacle=native.obstacle, prepare=as_given),
    Implementation("reference", reference.forward, prepare=as_given),
)


def _check(x, planes, alpha, offset, bias, impl) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"binary_matmul: x must have shape (..., C) with C at least 1, got {tuple(x.shape)}")
    check_shape("binary_matmul", "planes", planes, "(N, P, bytes of C bits)", None, None, -(-x.shape[-1] // 8))
    check_shape("binary_matmul", "alpha", alpha, "(N, G, P)", planes.shape[0], None, planes.shape[1])
    check_shape("binary_matmul", "offset", offset, "(N, G)", *alpha.shape[:2])
    check_shape("binary_matmul", "bias", bias, "(N,)", planes.shape[0])
    if planes.dtype != torch.uint8:
        raise ValueError(f"binary_matmul: planes must be uint8, got {planes.dtype}")
    if alpha.shape[1] == 0 or x.shape[-1] % alpha.shape[1]:
        raise ValueError(f"binary_matmul: the {alpha.shape[1]} groups of a row must divide its {x.shape[-1]} columns")
    operation.check(impl, {"planes": planes}, x=x, alpha=alpha, offset=offset, bias=bias)
