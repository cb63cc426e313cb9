"""The product with floating-point numbers of a few bits on the CPU in C: few rows of x straight from the codes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.minifloat_matmul.reference import numbers

SOURCE = Path(__file__).with_name("minifloat_matmul.c")
FEW = 8  # rows of x: with more, torch's product with the numbers takes less time


def forward(x: Tensor, codes: Tensor, scale: Tensor, kind: Minifloat) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes; not differentiable."""
    dtype = compute_dtype(x, scale)
    wide, scale = x.to(dtype).contiguous(), scale.to(dtype).contiguous()
    table = F.pad(numbers(kind), (0, 256 - 2**kind.bits)).to(dtype)
    y = wide.new_empty(len(x), len(codes))
    native.call(
        SOURCE, "minifloat_rows", len(codes), x.shape[1], kind.exponent_bits, kind.mantissa_bits, scale.shape[1],
        torch.get_num_threads(), len(x), codes.contiguous(), scale, table, wide, y,
    )  # fmt: skip
    return y.to(x.dtype)


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)
