"""Maps whose channels are normalised at every position by itself."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W), in channels_last."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv_layer_norm(in_dim: int, out_dim: int, kernel_size: int, stride: int) -> nn.Sequential:
    """A convolution ``conv``, with padding where patches overlap, and a layer norm ``norm``."""
    padding = kernel_size // 2 if kernel_size > stride else 0
    conv = nn.Conv2d(in_dim, out_dim, kernel_size, stride, padding)
    return nn.Sequential(OrderedDict(conv=conv, norm=LayerNorm2d(out_dim)))


class NeighbourMerging(nn.Module):
    """Half the resolution: four neighbours are concatenated, normalised and mixed linearly.

    Paper: Liu et al., "Swin Transformer", arXiv 2103.14030 ("patch merging").
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)
        nn.init.trunc_normal_(self.reduction.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, out_dim, ceil(H / 2), ceil(W / 2)); zeros stand beyond odd ends."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, width % 2, 0, height % 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        x = x.permute(0, 2, 4, 5, 3, 1).flatten(3)  # (B, rows, columns, column, row and channel within)
        return self.reduction(self.norm(x)).permute(0, 3, 1, 2)
