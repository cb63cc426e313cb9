"""Cross-window interaction: convolutions as long as a window, which reach over its border."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.voxels.conv import DepthwiseConv
from zoo.layers.voxels.sites import Sites


class CrossWindowInteraction(nn.Module):
    r"""What lies around a voxel, and along two lines of the ground that are longer than a window, in place of windows
    that shift.

    .. math:: y = x + [\mathrm{conv}_{3,3,3}(x_1), \mathrm{conv}_{1,1,W+1}(x_2), \mathrm{conv}_{1,W+1,1}(x_3), x_4]

    for four equal groups of channels and depthwise convolutions along (z, y, x) over the voxels that there are.

    Args:
        dim: channels, a multiple of 4.
        window: W, places of a window along x and y, an even number.

    Raises:
        ValueError: for other widths or windows.

    Paper: He et al., "ScatterFormer", arXiv 2401.00912; sums and initial values of the authors' code.
    """

    def __init__(self, dim: int, window: int):
        super().__init__()
        if dim < 4 or dim % 4 or window < 2 or window % 2:
            raise ValueError(
                f"dim must be a multiple of 4 and window even, 2 or more, got dim {dim} and window {window}"
            )
        self.around = DepthwiseConv(dim // 4, (3, 3, 3))
        self.along_x = DepthwiseConv(dim // 4, (1, 1, window + 1))
        self.along_y = DepthwiseConv(dim // 4, (1, window + 1, 1))

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x (M, dim) at the places -> (M, dim)."""
        near, wide, tall, same = x.chunk(4, dim=1)
        return x + torch.cat([self.around(near, sites), self.along_x(wide, sites), self.along_y(tall, sites), same], 1)
