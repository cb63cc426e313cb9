"""Pyramids of maps: scales out of one, context over all, the head of UperNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.batch_norm import BatchNorm2d
from zoo.layers.conv.conv_norm import ConvNorm


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, (B, C, H, W) to (B, C, *size)."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


class Scales(nn.ModuleList):
    """Four maps of one resolution at 4, 2, 1 and 1/2 times it, by learned steps of two and a maximum.

    Paper: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527.
    """

    FACTORS = (4, 2, 1, 0.5)

    def __init__(self, dim: int):
        def twice() -> nn.Module:
            return nn.ConvTranspose2d(dim, dim, 2, stride=2)

        super().__init__(
            [nn.Sequential(twice(), BatchNorm2d(dim), nn.GELU(), twice()), twice(), nn.Identity(), nn.MaxPool2d(2)]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps (B, dim, H, W), or one for all of them -> (B, dim, 4 H, 4 W) to (B, dim, H / 2, W / 2)."""
        return [step(x) for step, x in zip(self, maps if len(maps) > 1 else [*maps] * len(self), strict=True)]


class PyramidPooling(nn.Module):
    """A 3x3 convolution over x and, beside it, means of x over grids of 1, 2, 3 and 6 cells a side.

    Paper: Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105.
    """

    def __init__(self, in_dim: int, dim: int, cells: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.cells = tuple(cells)
        self.reduce = nn.ModuleList(ConvNorm(in_dim, dim, relu=True) for _ in cells)
        self.fuse_all = ConvNorm(in_dim + len(self.cells) * dim, dim, 3, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, dim, H, W)."""
        means = (F.adaptive_avg_pool2d(x, side) for side in self.cells)
        context = [resize(conv(mean), x.shape[2:]) for conv, mean in zip(self.reduce, means, strict=True)]
        return self.fuse_all(torch.cat([x, *context], dim=1))


class UperHead(nn.Module):
    r"""Context of the smallest map flows down to the largest; all of them are classified together.

    .. math:: y_L = \mathrm{ppm}(x_L), \quad y_l = W_l x_l + \mathrm{up}(y_{l+1}), \quad
              \mathrm{out} = W \, \mathrm{conv}([\mathrm{conv}(y_1), \ldots, \mathrm{up}(y_L)])

    Args:
        dims: channels of the maps, largest map first.
        dim: width within.
        num_classes: outputs a pixel.

    Paper: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", arXiv 1807.10221.
    """

    def __init__(self, dims: Sequence[int], dim: int, num_classes: int):
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(width, dim, relu=True) for width in dims[:-1])
        self.context = PyramidPooling(dims[-1], dim)
        self.smooth = nn.ModuleList(ConvNorm(dim, dim, 3, relu=True) for _ in dims[:-1])
        self.fuse_all = ConvNorm(len(dims) * dim, dim, 3, relu=True)
        self.head = nn.Conv2d(dim, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, largest first -> (B, num_classes, H, W) of the largest."""
        levels = [self.context(maps[-1])]
        for lateral, x in zip(reversed(self.lateral), reversed(maps[:-1]), strict=True):  # type: ignore[call-overload]
            levels.insert(0, lateral(x) + resize(levels[0], x.shape[2:]))
        smoothed = [*(conv(y) for conv, y in zip(self.smooth, levels, strict=False)), levels[-1]]
        return self.head(self.fuse_all(torch.cat([resize(y, maps[0].shape[2:]) for y in smoothed], dim=1)))
