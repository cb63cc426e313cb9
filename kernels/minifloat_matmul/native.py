"""The product with floating-point numbers of a few bits on the CPU in C: few rows of x straight from the codes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.common.tiles import tiled_product
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.minifloat_matmul.reference import numbers

SOURCE = Path(__file__).with_name("minifloat_matmul.c")
FEW = 8  # rows of x: with more, torch's product with the numbers takes less time


def forward(x: Tensor, codes: Tensor, scale: Tensor, kind: Minifloat) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes; not differentiable."""
    dtype = compute_dtype(x, scale)
    wide, scale = x.to(dtype).contiguous(), scale.to(dtype).contiguous()
    codes, table = codes.contiguous(), F.pad(numbers(kind), (0, 256 - 2**kind.bits)).to(dtype)
    sizes = x.shape[1], kind.exponent_bits, kind.mantissa_bits, scale.shape[1], torch.get_num_threads()

    def dense(rows: slice) -> Tensor:
        part = codes[rows]
        w = wide.new_empty(len(part), x.shape[1])
        native.call(SOURCE, "minifloat_dequantise", len(part), *sizes, part, scale[rows], table, w)
        return w

    if len(x) > FEW:
        return tiled_product(wide, len(codes), dense).to(x.dtype)
    y = wide.new_empty(len(x), len(codes))
    native.call(SOURCE, "minifloat_rows", len(codes), *sizes, len(x), codes, scale, table, wide, y)
    return y.to(x.dtype)


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)
