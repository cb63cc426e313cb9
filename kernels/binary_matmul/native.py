"""The product with scaled signs on the CPU in C, by tables of what four numbers may sum to; of many rows by
its numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.common.tiles import tiled_product

SOURCE = Path(__file__).with_name("binary_matmul.c")
FEW = 4  # rows of x: each has its own tables; with more, torch's product with the numbers takes less time


def fits(x: Tensor, alpha: Tensor) -> bool:
    """Whether groups are whole bytes, and sums are float32."""
    return x.shape[-1] % (8 * alpha.shape[1]) == 0 and torch.float64 not in (x.dtype, alpha.dtype)


def forward(x: Tensor, planes: Tensor, alpha: Tensor, offset: Tensor | None) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes; not differentiable."""
    wide, columns, planes, alpha = x.float().contiguous(), x.shape[-1], planes.contiguous(), alpha.float().contiguous()
    offset = None if offset is None else offset.float().contiguous()
    sizes = columns, planes.shape[1], alpha.shape[1], torch.get_num_threads()

    def dense(rows: slice) -> Tensor:
        part = planes[rows]
        w = wide.new_empty(len(part), columns)
        added = None if offset is None else offset[rows]
        native.call(SOURCE, "binary_dequantise", len(part), *sizes, part, alpha[rows], added, w)
        return w

    if len(x) > FEW:
        return tiled_product(wide, len(planes), dense).to(x.dtype)
    y, tables = wide.new_empty(len(x), len(planes)), wide.new_empty(columns // 4 * 16)
    native.call(SOURCE, "binary_rows", len(planes), *sizes, len(x), planes, alpha, offset, wide, tables, y)
    return y.to(x.dtype)


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)
