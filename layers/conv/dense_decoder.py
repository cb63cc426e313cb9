"""From the tokens of a vision transformer to a map over the pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.conv.conv_norm import ConvNorm


class DenseDecoder(nn.Module):
    """Layer norm of each patch, then once for each doubling of the sides: 3x3 convolution, batch norm, ReLU, bilinear
    upsampling; a 1x1 convolution stands before the last upsampling.

    Args:
        dim: width of the tokens.
        hidden_dim: channels of the convolutions.
        out_chans: channels of the result.
        grid_size: (height, width) in patches.
        patch_size: side of a patch in pixels, a power of two.

    Raises:
        ValueError: for a patch_size that is no power of two.

    Paper: Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers"
    (SETR, progressive upsampling), arXiv 2012.15840, as M³ViT has it for every task.
    """

    of_image_size = ("grid_size",)

    def __init__(self, dim: int, hidden_dim: int, out_chans: int, grid_size: tuple[int, ...], patch_size: int):
        super().__init__()
        doublings = patch_size.bit_length() - 1
        if patch_size != 1 << doublings:
            raise ValueError(
                f"patches are brought back to pixels by doublings: patch_size must be a power of 2, got {patch_size}"
            )
        self.grid_size = grid_size
        self.norm = nn.LayerNorm(dim, 1e-6)
        widths = [dim] + [hidden_dim] * doublings
        self.stages = nn.ModuleList(ConvNorm(before, hidden_dim, 3, relu=True) for before in widths[:-1])
        self.out = nn.Conv2d(widths[-1], out_chans, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Patches (B, H W, dim) in raster order -> (B, out_chans, H patch_size, W patch_size)."""
        x = self.norm(x).mT.unflatten(2, self.grid_size)
        for index, stage in enumerate(self.stages):
            x = stage(doubled(x) if index else x)
        x = self.out(x)
        return doubled(x) if len(self.stages) else x


def doubled(x: Tensor) -> Tensor:
    """Twice the height and width, bilinearly."""
    return F.interpolate(x, scale_factor=2, mode="bilinear")
