"""Rows of integers times packed integers, whose sums over groups are scaled once (MixPE), straight from the codes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.dispatch import Implementation, Operation, as_given, check_shape, is_plain_step
from zoo.kernels.integer_matmul.groups import scaled_products
from zoo.kernels.lowbit_matmul import row_bytes, unpack

SOURCE = Path(__file__).with_name("products.c")


def integer_products(
    v: Tensor, step: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None = None, *, bits: int, impl: str = "auto"
) -> Tensor:
    r"""A product of integers with packed integers, exact in each group of columns.

    .. math::
        y_{mn} = s_m \sum_g s_{ng} \Big( \sum_{c \in g} q_{nc} v_{mc} - z_{ng} \sum_{c \in g} v_{mc} \Big)

    Args:
        v: (M, C) integers in [-128, 127], of any dtype; of "native" they are bytes.
        step: s_m (M, 1), float32 or wider.
        codes: q (N, bytes) uint8, of ``lowbit_matmul.pack``.
        scale: s_ng (N, G).
        zero: z (N, G) uint8; None for :math:`2^{bits-1}`.
        bits: of a code, 1 to 8.
        impl: "auto" or the name of an implementation ("native", "reference").

    Returns:
        (M, N), of the dtype of ``step``; not differentiable.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together.
        RuntimeError: when the named implementation cannot run on the device of v.

    Paper: "MixPE: Quantization and Hardware Co-design for Efficient LLM Inference", arXiv 2411.16158.
    """
    check_shape("integer_products", "codes", codes, "(N, bytes of C codes)", None, row_bytes(v.shape[1], bits))
    check_shape("integer_products", "step", step, "(M, 1)", len(v), 1)
    check_shape("integer_products", "scale", scale, "(N, G)", len(codes), None)
    check_shape("integer_products", "zero", zero, "(N, G)", *scale.shape)
    if codes.dtype != torch.uint8 or (zero is not None and zero.dtype != torch.uint8):
        found = [t.dtype for t in (codes, zero) if t is not None]
        raise ValueError(f"integer_products: codes and zero must be uint8, got {found}")
    if scale.shape[1] == 0 or v.shape[1] % scale.shape[1]:
        raise ValueError(f"integer_products: {scale.shape[1]} groups must divide {v.shape[1]} columns")
    chosen = operation.choice(impl)
    if chosen == "auto" and not is_plain_step(chosen, v, step, scale):
        impl = "reference"
    return operation.resolve(impl, v.device).forward(v, step, codes, scale, zero, bits)


def reference(v: Tensor, step: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """Its definition, of some rows of the matrix after another."""
    zero = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.uint8) if zero is None else zero
    return scaled_products(v, step, scale, lambda rows: unpack(codes[rows], bits, v.shape[1]), zero)


def _native(v: Tensor, step: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    scale = (scale if scale.dtype == torch.bfloat16 else scale.float()).contiguous()
    y = step.new_empty(len(v), len(codes), dtype=torch.float32)
    sizes = len(codes), v.shape[1], bits, scale.shape[1], int(scale.dtype == torch.bfloat16)
    native.call(
        SOURCE, "integer_products", *sizes, torch.get_num_threads(), len(v), codes.contiguous(), scale,
        zero if zero is None else zero.contiguous(), v.to(torch.int8).contiguous(), step.float().contiguous(), y,
    )  # fmt: skip
    return y.to(step.dtype)


operation = Operation(
    "integer_products",
    Implementation("native", _native, obstacle=lambda device: native.obstacle(SOURCE, device), prepare=as_given),
    Implementation("reference", reference, prepare=as_given),
)
