"""Convolution and batch norm, the unit of the convolutional backbones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.batch_norm import BatchNorm2d, affine
from zoo.layers.conv.inference import ACTIVATIONS, InferenceConv2d


class ConvNorm(nn.Module):
    """y = bn(conv(x)), and relu of it where asked for; size-keeping padding.

    Args:
        in_dim, out_dim: channels.
        kernel_size: odd side of the kernel.
        stride: of the convolution.
        groups: of the convolution; in_dim for a depthwise one.
        gamma: initial weight of the norm; 0 closes a branch.
        relu: end with a ReLU.
        bias: of the convolution, which the norm makes redundant.

    Raises:
        ValueError: for an even kernel_size.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        gamma: float = 1.0,
        relu: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)
        self.bn = BatchNorm2d(out_dim, gamma)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, ceil(H / stride), ceil(W / stride))."""
        y = self.bn(self.conv(x))
        return F.relu_(y) if self.relu else y

    def fuse(self) -> nn.Module:
        """One convolution with a bias and the ReLU."""
        return self._fused("relu" if self.relu else None)

    @torch.no_grad()
    def _fused(self, activation: str | None) -> InferenceConv2d:
        c, (scale, shift) = self.conv, affine(self.bn)
        bias = shift if c.bias is None else shift + c.bias * scale
        return InferenceConv2d(c, c.weight * scale[:, None, None, None], bias, activation)


class ActivatedConvNorm(ConvNorm):
    """y = activation(bn(conv(x))); arguments as of ``ConvNorm``. A subclass names its activation."""

    activation: str

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, ceil(H / stride), ceil(W / stride))."""
        return ACTIVATIONS[self.activation].function(super().forward(x))

    def fuse(self) -> nn.Module:
        """One convolution with a bias and the activation."""
        return self._fused(self.activation)


class GELUConvNorm(ActivatedConvNorm):
    """y = gelu(bn(conv(x))), the GELU by its tanh formula."""

    activation = "gelu_tanh"


class ReLU6ConvNorm(ActivatedConvNorm):
    """y = relu6(bn(conv(x)))."""

    activation = "relu6"


class SiLUConvNorm(ActivatedConvNorm):
    """y = silu(bn(conv(x)))."""

    activation = "silu"


def depthwise(dim: int, kernel_size: int = 3, *, gamma: float = 1.0) -> ConvNorm:
    """A depthwise ``ConvNorm`` of stride 1."""
    return ConvNorm(dim, dim, kernel_size, groups=dim, gamma=gamma)


class ConvMlp(nn.Module):
    """y = W2 relu(W1 x) at every position, each followed by batch norm; the last norm starts at 0."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.pw1 = ConvNorm(dim, hidden_dim, relu=True)
        self.pw2 = ConvNorm(hidden_dim, dim, gamma=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        return self.pw2(self.pw1(x))
