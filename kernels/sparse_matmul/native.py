"""The product with a sparse matrix on the CPU in C (``sparse_matmul.c``): few rows of x straight from the values."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.sparse_matmul.bitmap import places

SOURCE = Path(__file__).with_name("sparse_matmul.c")
FEW = 8  # rows of x: with more, torch's product with the whole matrix takes less time


def forward(x: Tensor, values: Tensor, mask: Tensor, start: Tensor | None) -> Tensor:
    """Same arguments and result as the reference, of any floating dtypes."""
    dtype = compute_dtype(x, values)
    if len(x) > FEW:
        return x.to(_factor(x, values)) @ dense(values, mask, x.shape[1]).to(_factor(x, values)).mT
    x, values = x.to(dtype).contiguous(), _readable(values, dtype)
    y = x.new_empty(len(x), len(mask))
    native.call(SOURCE, "sparse_rows", *_sizes(x.shape[1], values, mask), len(x), *_given(values, mask, start), x, y)
    return y


def backward(dy: Tensor, x: Tensor, values: Tensor, mask: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of x and values."""
    dtype = _factor(x, values)
    x, dy = x.to(dtype), dy.to(dtype)
    dx = dy @ dense(values, mask, x.shape[1]).to(dtype)
    return dx, (dy.mT @ x).masked_select(places(mask, x.shape[1]))


def dense(values: Tensor, mask: Tensor, columns: int) -> Tensor:
    """The matrix (N, C), in the dtype of the values."""
    w, values = values.new_zeros(len(mask), columns), values.contiguous()
    sizes = len(mask), columns, len(values), values.element_size(), torch.get_num_threads()
    as_integers = [t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]) for t in (values, w)]
    native.call(SOURCE, "sparse_dense", *sizes, as_integers[0], mask.contiguous(), as_integers[1])
    return w


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _factor(x: Tensor, values: Tensor) -> torch.dtype:
    """Of the factors of torch's product, whose sums are float32 of bfloat16 too."""
    return torch.bfloat16 if x.dtype == values.dtype == torch.bfloat16 else compute_dtype(x, values)


def _readable(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In one of the dtypes that the C function reads: bfloat16 as it is, but for sums in float64."""
    return values if values.dtype == torch.bfloat16 and dtype == torch.float32 else values.to(dtype)


def _sizes(columns: int, values: Tensor, mask: Tensor) -> tuple[int, ...]:
    return len(mask), columns, len(values), int(values.dtype == torch.bfloat16), torch.get_num_threads()


def _given(values: Tensor, mask: Tensor, start: Tensor | None) -> tuple[Tensor | None, ...]:
    return values.contiguous(), mask.contiguous(), start if start is None else start.contiguous()
