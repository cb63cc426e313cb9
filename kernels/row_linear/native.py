"""Few rows times a matrix on the CPU in C (``row_linear.c``): as fast as the matrix is read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("row_linear.c")
ROWS = 4


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (M, C) of up to four rows, weight (N, C), both float32 or bfloat16 -> (M, N) in the dtype of x."""
    rows, columns = weight.shape
    y = x.new_empty(len(x), rows, dtype=torch.float32)
    sizes = len(x), rows, columns, int(weight.dtype == torch.bfloat16), torch.get_num_threads()
    wide = None if bias is None else bias.float().contiguous()
    native.call(SOURCE, "row_linear", *sizes, weight.contiguous(), wide, x.float().contiguous(), y)
    return y.to(x.dtype)


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)
