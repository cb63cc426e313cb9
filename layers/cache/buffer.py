"""Where a cache keeps its slots: tensors with free room at the end of one dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def written(buffer: Tensor, new: Tensor, start: int, dim: int) -> Tensor:
    """``buffer`` with ``new`` at ``start`` of a dimension: in place, or a copy where autograd may need the old one."""
    new, end = new.to(buffer.dtype), start + new.shape[dim]
    if buffer.is_floating_point() and (torch.is_grad_enabled() or buffer.requires_grad):
        after = buffer.narrow(dim, end, buffer.shape[dim] - end)
        return torch.cat([buffer.narrow(dim, 0, start), new, after], dim)
    buffer.narrow(dim, start, new.shape[dim]).copy_(new)
    return buffer


def gathered(tensor: Tensor, slots: Tensor, dim: int) -> Tensor:
    """The slots (B, n) of a tensor (B, ..., capacity, ...) that has them in a dimension."""
    return tensor.take_along_dim(
        slots.view(len(slots), *[1] * (dim - 1), slots.shape[1], *[1] * (tensor.dim() - 1 - dim)), dim
    )


def widened(buffer: Tensor, capacity: int, dim: int, filler: float = 0) -> Tensor:
    """``buffer`` with free slots at the end of a dimension."""
    free = [0, 0] * (buffer.dim() - 1 - dim) + [0, capacity - buffer.shape[dim]]
    return F.pad(buffer, free, value=filler)
