"""Residual blocks of one grouped and two pointwise convolutions: convolved first, or widened first."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.conv.conv_norm import ConvNorm, SiLUConvNorm
from zoo.layers.drop import DropPath


class ConvBlock(nn.Module):
    """y = layers(x) [+ x]: layers that see a neighbourhood, and the input added where ``residual``.

    ``zoo.vision.fuse_blocks`` runs it tile by tile.
    """

    def __init__(self, *layers: nn.Module, residual: bool, drop_path: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, ceil(H / stride), ceil(W / stride))."""
        y = self.layers(x)
        return x + self.drop_path(y) if self.residual else y


class ConvFirst(ConvBlock):
    r"""Mix the neighbours of the narrow map, then widen and narrow every position.

    .. math:: y = W_2 \, \mathrm{silu}(W_1 \, \mathrm{conv}(x)) \; [+ x]

    every product followed by batch norm; the input is added where it has the shape of the output. No layer but the
    first sees more than its own pixel, so that a tile of the output needs a halo of x alone and nothing is computed
    twice.

    Args:
        in_dim, out_dim: channels, in_dim a multiple of group_width.
        expand: width between the pointwise convolutions over in_dim.
        kernel_size: odd side of the grouped kernel.
        stride: of that convolution.
        group_width: channels that it mixes; 1 is depthwise.
        drop_path: stochastic depth, where the input is added.

    Paper: Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617; the layers are those of the
    author's ``spio`` (scripts/profile_block.py).
    """

    def __init__(
        self, in_dim: int, out_dim: int, expand: int, kernel_size: int = 3, stride: int = 1, group_width: int = 8,
        drop_path: float = 0.0,
    ):  # fmt: skip
        super().__init__(
            ConvNorm(in_dim, in_dim, kernel_size, stride, groups=in_dim // group_width),
            SiLUConvNorm(in_dim, expand * in_dim),
            ConvNorm(expand * in_dim, out_dim),
            residual=stride == 1 and in_dim == out_dim,
            drop_path=drop_path,
        )


class MBConv(ConvBlock):
    r"""Widen, mix the neighbours of the wide map, narrow.

    .. math:: y = W_2 \, \mathrm{silu}(\mathrm{conv}(\mathrm{silu}(W_1 x))) \; [+ x]

    Arguments and source as of ``ConvFirst``, the groups of expand * in_dim channels.
    """

    def __init__(
        self, in_dim: int, out_dim: int, expand: int, kernel_size: int = 3, stride: int = 1, group_width: int = 8,
        drop_path: float = 0.0,
    ):  # fmt: skip
        wide = expand * in_dim
        super().__init__(
            SiLUConvNorm(in_dim, wide),
            SiLUConvNorm(wide, wide, kernel_size, stride, groups=wide // group_width),
            ConvNorm(wide, out_dim),
            residual=stride == 1 and in_dim == out_dim,
            drop_path=drop_path,
        )
