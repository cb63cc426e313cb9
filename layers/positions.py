"""Position information: rotary embedding, and resizing of learned position tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.rope import rope


def rotary_embedding(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    r"""Rotate channel pairs (i, i + d/2) of each head by position * base^(-2i/d).

    Args:
        x: (B, T, H, d) with even d. positions: (T,) or (B, T) token positions. base: wavelength base.

    Paper: Su et al., "RoFormer", arXiv 2104.09864 (the half-split pairing of GPT-NeoX and LLaMA).
    """
    return rope(x, *rotary_tables(positions, x.shape[-1], base, x.dtype))


def rotary_tables(
    positions: Tensor, dim: int, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin (..., dim / 2) of the angles of ``rotary_embedding`` for positions (...), float32 or wider."""
    half, wide = dim // 2, torch.promote_types(dtype, torch.float32)
    frequency = base ** (torch.arange(0, -half, -1, device=positions.device, dtype=wide) / half)
    angle = positions.unsqueeze(-1) * frequency
    return angle.cos(), angle.sin()


def resize_grid(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bicubic, antialiased resize of a square position table (1, h * h, D) to (1, grid[0] * grid[1], D)."""
    side = round(table.shape[1] ** 0.5)
    if (side, side) == tuple(grid):
        return table
    image = table.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
