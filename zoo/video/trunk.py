"""The image encoder of EfficientTAM: a plain vision transformer, mostly in windows, and a neck to one map."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers import Attention, Mlp, PatchEmbed, recompute
from zoo.layers.attention.cascaded_group import from_windows, to_windows
from zoo.layers.conv import LayerNorm2d

EPS = 1e-6  # of the norms


class WindowBlock(nn.Module):
    """x + attention(norm(x)), in windows or over the map, then x + mlp(norm(x)).

    Where windows do not cover the map exactly, zeros stand beyond its ends, and are attended to: the published weights
    were trained so.

    Paper: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, window: int | None):
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = (nn.LayerNorm(dim, EPS) for _ in range(2))
        self.attn = Attention(dim, num_heads)
        self.mlp = Mlp(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, h, w, dim) -> the same."""
        x = x + self._attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attention(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if self.window is None:
            return self.attn(x.flatten(1, 2)).unflatten(1, (height, width))
        side = self.window
        windows = to_windows(x.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
        y = self.attn(windows.flatten(1, 2)).unflatten(1, (side, side))
        return from_windows(y.permute(0, 3, 1, 2), height, width).permute(0, 2, 3, 1)


class Trunk(nn.Module):
    """Patches, a table of positions and blocks. The table has a row for a class token, which there is none of.

    Args:
        config: an ``EfficientTAMConfig``.
    """

    def __init__(self, config: Any):
        super().__init__()
        c = config
        self.patch_embed = PatchEmbed(c.img_size, c.patch_size, c.in_chans, c.dim)
        self.grid = self.patch_embed.grid_size
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + c.position_grid**2, c.dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            WindowBlock(c.dim, c.num_heads, int(c.dim * c.mlp_ratio), None if i in c.global_blocks else c.window)
            for i in range(c.depth)
        )

    def forward(self, x: Tensor, recomputed: bool = False) -> Tensor:
        """Images (B, in_chans, H, W) to a map (B, dim, h, w)."""
        x = self.patch_embed(x).unflatten(1, self.grid) + self.positions()
        for block in self.blocks:
            x = recompute(block, x) if recomputed else block(x)
        return x.permute(0, 3, 1, 2)

    def positions(self) -> Tensor:
        """The table (1, h, w, dim), resized bicubically to the patches."""
        side = int((self.pos_embed.shape[1] - 1) ** 0.5)
        table = self.pos_embed[:, 1:].unflatten(1, (side, side))
        if self.grid == (side, side):
            return table
        wide = table.to(torch.promote_types(table.dtype, torch.float32)).permute(0, 3, 1, 2)
        return F.interpolate(wide, self.grid, mode="bicubic").permute(0, 2, 3, 1).to(table.dtype)


class ImageEncoder(nn.Module):
    """Images to the map that all else reads."""

    def __init__(self, config: Any):
        super().__init__()
        c = config
        self.trunk = Trunk(c)
        self.neck = nn.Sequential(OrderedDict(
            conv_1x1=nn.Conv2d(c.dim, c.hidden_dim, 1, bias=False), norm_0=LayerNorm2d(c.hidden_dim, EPS),
            conv_3x3=nn.Conv2d(c.hidden_dim, c.hidden_dim, 3, padding=1, bias=False),
            norm_1=LayerNorm2d(c.hidden_dim, EPS),
        ))  # fmt: skip

    def forward(self, x: Tensor, recomputed: bool = False) -> Tensor:
        """Images (B, in_chans, H, W) to (B, hidden_dim, h, w)."""
        return self.neck(self.trunk(x, recomputed))
