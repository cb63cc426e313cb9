"""The linear layer of a decoding step, dispatched over its implementations; for inference, without an operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.dispatch import AUTOCAST_DEVICES, Implementation, Operation, as_given
from zoo.kernels.row_linear import native

DTYPES = (torch.float32, torch.bfloat16)


def row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    r"""``torch.nn.functional.linear``, with a faster way for up to four rows on the CPU where no gradient is recorded.

    .. math:: y = x W^\top + b

    Args:
        x: (..., C).
        weight: (N, C).
        bias: (N,).
        impl: "auto" or the name of an implementation ("native", "reference"). "auto" takes the native one, whose sums
            are float32, for up to four rows of float32 or bfloat16 that are not compiled, recorded, transformed or
            under autocast.

    Returns:
        (..., N).

    Raises:
        ValueError: when "native" is asked for by ``impl`` and x and weight are not of one of its dtypes, or x of one to
            four rows; where a block or a program chooses it, such a product is torch's.
        RuntimeError: when the named implementation cannot run on the device of x.
    """
    chosen, rows = operation.choice(impl), x.numel() // max(1, x.shape[-1])
    fits = x.dtype == weight.dtype and x.dtype in DTYPES and 1 <= rows <= native.ROWS
    if impl == "native" and not fits:
        raise ValueError(
            f"row_linear: native takes 1 to {native.ROWS} rows, x and weight float32 or both bfloat16, got {rows} rows "
            f"of {x.dtype} and {weight.dtype}: take impl='auto'"
        )
    if not fits or (chosen != "native" and not _is_step(chosen, rows, x, weight)):
        return F.linear(x, weight, bias)
    found = operation.resolve("native", x.device).forward(x.reshape(-1, x.shape[-1]), weight, bias)
    return found.view(*x.shape[:-1], len(weight))


operation = Operation(
    "row_linear",
    Implementation("native", native.forward, obstacle=native.obstacle, prepare=as_given),
    Implementation("reference", F.linear, prepare=as_given),
)


def _is_step(impl: str, rows: int, x: Tensor, weight: Tensor) -> bool:
    low = "cpu" in AUTOCAST_DEVICES and torch.is_autocast_enabled("cpu")
    return not low and operation.direct(impl, rows, native.ROWS, x, weight) is not None
