"""The grouped matrix product, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from zoo.kernels.dispatch import Implementation, Operation, Sizes, as_given, check_shape, full_precision
from zoo.kernels.moe import grouped, reference
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


def grouped_matmul(
    x: Tensor, weight: Tensor, offsets: Tensor, *, bias: Tensor | None = None, impl: str = "auto"
) -> Tensor:
    r"""Each row times the matrix of its expert, for rows sorted by expert.

    .. math::
        y_m = x_m W_e + b_e, \quad \mathrm{offsets}_e \le m < \mathrm{offsets}_{e+1}

    Experts may have any number of rows, none included. Rows at ``offsets[E]`` and behind belong to no expert: they
    give zeros and have no gradient. Sums are float32 (float64 if x or weight is).

    Args:
        x: rows (M, D), any floating dtype.
        weight: (E, D, F).
        offsets: (E + 1,) int64 on the device of x, rising from 0 to at most M. Where an implementation reads them on
            the host this is checked; Triton's reads them on the device only.
        bias: (E, F).
        impl: "auto" or the name of an implementation ("triton", "grouped", "reference").

    Returns:
        (M, F) in the dtype of x.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together.
        RuntimeError: when the named implementation cannot run on the device of x.

    Paper: Gale et al., "MegaBlocks", arXiv 2211.15841 (dropless experts).
    """
    _check(x, weight, offsets, bias, impl)
    output = _grouped_matmul(x, weight, offsets, impl)
    return output if bias is None else add_bias(output, bias, offsets)


def add_bias(rows: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """Rows (M, F) sorted by expert plus those of the experts' biases (E, F)."""
    row = torch.arange(rows.shape[0], device=rows.device)[:, None]
    member = (row >= offsets[:-1]) & (row < offsets[1:])  # (M, E)
    with full_precision(rows.device):
        return torch.addmm(rows, member.to(rows.dtype), bias.to(rows.dtype))


operation = Operation(
    "grouped_matmul",
    triton_implementation("zoo.kernels.moe.triton"),
    Implementation("grouped", grouped.forward, grouped.backward, prepare=as_given),
    Implementation("reference", reference.forward),
)


def _shapes(x: Tensor, weight: Tensor, offsets: Tensor) -> Like:
    return Like(x, (x.shape[0], weight.shape[2]))


def _flops(x, weight, *_) -> int:
    return 2 * x[0] * prod(weight[1:])


_grouped_matmul = define(operation, "x weight", _shapes, flops=_flops)


def _check(x, weight, offsets, bias, impl) -> None:
    sizes = Sizes("grouped_matmul")
    sizes.check("EDF", weight=weight)
    sizes.check("MD", x=x)
    check_shape("grouped_matmul", "offsets", offsets, "(E + 1,)", len(weight) + 1)
    sizes.check("EF", bias=bias)
    operation.check(impl, {"offsets": offsets}, x=x, weight=weight, bias=bias)
    if offsets.dtype != torch.int64 or offsets.device != x.device:
        raise ValueError(
            f"grouped_matmul: offsets must be int64 on {x.device}, got {offsets.dtype} on {offsets.device}"
        )
    if 0 in weight.shape:
        raise ValueError(f"grouped_matmul: E, D and F must be at least 1, got {tuple(weight.shape)}")
