"""Bits of codes as planes: eight neighbouring columns a byte, the first one lowest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_planes(bits: Tensor) -> Tensor:
    """bits (..., C), 0 or 1 -> (..., ceil(C / 8)) uint8; a row is filled up with zeros."""
    slots = F.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (slots << _places(bits)).sum(-1, dtype=torch.uint8)


def unpack_planes(planes: Tensor, columns: int) -> Tensor:
    """planes (..., ceil(columns / 8)) -> bits (..., columns) uint8."""
    return (planes[..., None] >> _places(planes) & 1).flatten(-2)[..., :columns]


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
