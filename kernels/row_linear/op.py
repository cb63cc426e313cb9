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
        RuntimeError: when the named implementation cannot run on the device of x.
    """
    chosen = operation.choice(impl)
    if chosen != "native" and not _is_step(chosen, x, weight):
        return F.linear(x, weight, bias)
    found = operation.resolve("native", x.device).forward(x.reshape(-1, x.shape[-1]), weight, bias)
    return found.view(*x.shape[:-1], len(weight))


operation = Operation(
    "row_linear",
    Implementation("native", native.forward, obstacle=native.obstacle, prepare=as_given),
    Implementation("reference", F.linear, prepare=as_given),
)


def _is_step(impl: str, x: Tensor, weight: Tensor) -> bool:
    rows, low = x.numel() // max(1, x.shape[-1]), "cpu" in AUTOCAST_DEVICES and torch.is_autocast_enabled("cpu")
    same = x.dtype == weight.dtype and x.dtype in DTYPES
    return same and not low and operation.direct(impl, rows, native.ROWS, x, weight) is not None
