"""Position information: rotary embedding, and resizing of learned position tables."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.rope import rope


def rotary_embedding(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    r"""Rotate channel pairs (i, i + d/2) of each head by position * base^(-2i/d).

    Args:
        x: (B, T, H, d) with even d.
        positions: (T,) or (B, T) token positions.
        base: wavelength base.

    Paper: Su et al., "RoFormer", arXiv 2104.09864 (the half-split pairing of GPT-NeoX and LLaMA).
    """
    return rope(x, *rotary_tables(positions, x.shape[-1], base, x.dtype))


def rotary_tables(
    positions: Tensor, dim: int, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin (..., dim / 2) of the angles of ``rotary_embedding`` for positions (...), float32 or wider."""
    half, wide = dim // 2, compute_dtype(dtype)
    frequency = base ** (torch.arange(0, -half, -1, device=positions.device, dtype=wide) / half)
    angle = positions.unsqueeze(-1) * frequency
    return angle.cos(), angle.sin()


def planar_tables(
    places: Tensor, dim: int, base: float = 10000.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """cos and sin (..., dim / 2) for places (..., 2): the first half of the pairs turns by x, the other by y."""
    cos, sin = rotary_tables(places, dim // 2, base, dtype)  # (..., 2, dim / 4)
    return cos.flatten(-2), sin.flatten(-2)


def directional_tables(headings: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    r"""cos and sin (..., dim / 2) for headings (...) in radians: every pair turns by the heading itself.

    .. math:: (R_a q)^\top R_b k = c \cos(a - b) + s \sin(a - b)

    So a score depends on the difference of two headings, with period 2 pi: the frequencies of ``rotary_tables`` are no
    integers, so that to them -pi and pi are far apart.

    Paper: Zhao et al., "DRoPE", arXiv 2503.15029.
    """
    angle = headings.to(compute_dtype(dtype)).unsqueeze(-1).expand(*headings.shape, dim // 2)
    return angle.cos(), angle.sin()


def resize_grid(table: Tensor, grid: tuple[int, int], source: tuple[int, int] | None = None) -> Tensor:
    """Bicubic, antialiased resize of a table (1, h * w, D) in raster order to (1, grid[0] * grid[1], D), as in timm;
    float32 or wider.

    Args:
        table: values at the positions of a grid.
        grid: (rows, columns) wanted.
        source: (h, w) of the table; where it is None or has another length the table must be of a square, and stays as
            it is where it is of none.
    """
    side = math.isqrt(table.shape[1])
    if source is None or source[0] * source[1] != table.shape[1]:
        source = (side, side)
    if source == tuple(grid) or source[0] * source[1] != table.shape[1] or not table.is_floating_point():
        return table
    table = table.to(torch.promote_types(table.dtype, torch.float32))
    image = rearrange(table, "b (h w) d -> b d h w", h=source[0])
    resized = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
    return rearrange(resized, "b d h w -> b (h w) d")


def resize_positions(
    table: Tensor, grid: tuple[int, int], class_row: Callable[[int], int], source: tuple[int, int] | None = None
) -> Tensor:
    """``resize_grid`` of the N patches of a table (1, 1 + N, D), whose row ``class_row(N)`` is the class token's."""
    if table.dim() != 3:
        return table
    row = class_row(table.shape[1] - 1)
    token, patches = table[:, row : row + 1], torch.cat([table[:, :row], table[:, row + 1 :]], dim=1)
    resized = resize_grid(patches, grid, source)
    if resized is patches:
        return table
    row = class_row(resized.shape[1])
    return torch.cat([resized[:, :row], token.to(resized.dtype), resized[:, row:]], dim=1)
