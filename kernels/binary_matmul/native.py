"""The product with scaled signs on the CPU in C, by tables of what four numbers may sum to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("binary_matmul.c")
FEW = 4  # rows of x: each has its own tables


def fits(x: Tensor, alpha: Tensor) -> bool:
    """Whether groups are whole bytes, and sums are float32."""
    return x.shape[-1] % (8 * alpha.shape[1]) == 0 and torch.float64 not in (x.dtype, alpha.dtype)


def forward(x: Tensor, planes: Tensor, alpha: Tensor, offset: Tensor | None) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes; not differentiable."""
    wide, columns = x.float().contiguous(), x.shape[-1]
    y, tables = wide.new_empty(len(x), len(planes)), wide.new_empty(columns // 4 * 16)
    native.call(
        SOURCE, "binary_rows", len(planes), columns, planes.shape[1], alpha.shape[1], torch.get_num_threads(), len(x),
        planes.contiguous(), alpha.float().contiguous(), None if offset is None else offset.float().contiguous(),
        wide, tables, y,
    )  # fmt: skip
    return y.to(x.dtype)


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)
