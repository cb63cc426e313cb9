"""Where the numbers of a sparse matrix are: a bit a place.

A row of C columns is ceil(C / 8) bytes, column 8 i + k in bit k of byte i; bits behind the last column are 0. A bit a
place takes less than a position of 16 bits a number, as in Flash-LLM, where more than one number in 16 is left.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def compress(matrix: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (N, C) and what is kept of it (N, C) bool -> mask (N, ceil(C / 8)) uint8, values (K,) row after row."""
    bits = F.pad(kept, (0, -kept.shape[1] % 8)).unflatten(1, (-1, 8)).to(torch.uint8)
    mask = (bits << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
    return mask, matrix[kept]


def places(mask: Tensor, columns: int) -> Tensor:
    """mask (..., N, ceil(columns / 8)) -> (..., N, columns) bool."""
    shift = torch.arange(8, device=mask.device, dtype=torch.uint8)
    return (mask[..., None] >> shift & 1).flatten(-2)[..., :columns].bool()


def row_starts(mask: Tensor, columns: int) -> Tensor:
    """Where the values of each row begin, and their end: (N + 1,) int32."""
    counts = places(mask, columns).sum(-1)
    return F.pad(counts.cumsum(-1), (1, 0)).to(torch.int32)
