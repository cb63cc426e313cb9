"""Inverted residuals: a wide depthwise convolution between two narrow ends."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.conv.conv_norm import ConvNorm, ReLU6ConvNorm
from zoo.layers.drop import DropPath


class InvertedResidual(nn.Module):
    r"""Widen, mix the neighbours of every channel, narrow.

    .. math:: y = W_2 \, \mathrm{relu6}(\mathrm{dw}(\mathrm{relu6}(W_1 x))) \; [+ x]

    every product followed by batch norm; the input is added where it has the shape of the output and ``expand`` > 1.

    Args:
        in_dim, out_dim: channels.
        expand: width between them over in_dim; 1 leaves W_1 out.
        kernel_size: odd side of the depthwise kernel.
        stride: of that convolution.
        drop_path: stochastic depth, where the input is added.

    Paper: Sandler et al., "MobileNetV2", arXiv 1801.04381.
    """

    def __init__(
        self, in_dim: int, out_dim: int, expand: int, kernel_size: int, stride: int = 1, drop_path: float = 0.0
    ):
        super().__init__()
        mid = expand * in_dim
        self.expand = ReLU6ConvNorm(in_dim, mid) if expand > 1 else nn.Identity()
        self.depthwise = ReLU6ConvNorm(mid, mid, kernel_size, stride, groups=mid)
        self.project = ConvNorm(mid, out_dim)
        self.residual = expand > 1 and stride == 1 and in_dim == out_dim
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, ceil(H / stride), ceil(W / stride))."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + self.drop_path(y) if self.residual else y
