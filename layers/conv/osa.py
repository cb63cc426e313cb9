"""One-shot aggregation, the block of VoVNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.conv.conv_norm import ConvNorm
from zoo.layers.conv.inference import InferenceConv2d
from zoo.layers.conv.squeeze_excite import EffectiveSqueezeExcite
from zoo.layers.drop import DropPath


class SeparableConvNorm(ConvNorm):
    """relu(bn(W dw(x))): a 3 x 3 depthwise convolution, then one of 1 x 1, with nothing in between."""

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1):
        super().__init__(in_dim, out_dim, relu=True)
        self.depthwise = nn.Conv2d(in_dim, in_dim, 3, stride, 1, groups=in_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim, H, W) -> (B, out_dim, ceil(H / stride), ceil(W / stride))."""
        return super().forward(self.depthwise(x))

    def fuse(self) -> nn.Module:
        """The depthwise convolution as it is, the other with a bias and the ReLU."""
        depthwise = InferenceConv2d(self.depthwise, self.depthwise.weight.detach(), None)
        return nn.Sequential(depthwise, super().fuse())


def conv3x3(in_dim: int, out_dim: int, stride: int = 1, separable: bool = False) -> ConvNorm:
    """3 x 3 convolution, batch norm, ReLU; the convolution in two steps where ``separable``."""
    if separable:
        return SeparableConvNorm(in_dim, out_dim, stride)
    return ConvNorm(in_dim, out_dim, 3, stride, relu=True)


class OneShotAggregation(nn.Module):
    r"""All layers of a chain are concatenated once, at its end.

    .. math:: y_0 = x, \quad y_l = \mathrm{conv}_l(y_{l-1}), \quad y = W [x, y_1, \ldots, y_L]

    with batch norm and ReLU after each convolution; then squeeze-and-excitation and the addition of x where asked for.

    Args:
        dim, mid_dim, out_dim: channels of x, of the chain and of y.
        num_layers: L.
        separable: depthwise-separable chain; a 1 x 1 convolution then brings x to mid_dim first where they differ.
        squeeze: end with ``EffectiveSqueezeExcite``.
        residual: add x.
        drop_path: rate of dropping all but x.

    Raises:
        ValueError: for a residual block whose width changes.

    Papers: Lee et al., "An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object Detection", arXiv
    1904.09730; the last two options Lee and Park, arXiv 1911.06667.
    """

    def __init__(
        self,
        dim: int,
        mid_dim: int,
        out_dim: int,
        num_layers: int = 5,
        *,
        separable: bool = False,
        squeeze: bool = False,
        residual: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if residual and dim != out_dim:
            raise ValueError(f"a residual block keeps its width, got dim {dim}, out_dim {out_dim}")
        reduced = separable and dim != mid_dim
        widths = [mid_dim if reduced else dim] + [mid_dim] * num_layers
        self.reduce = ConvNorm(dim, mid_dim, relu=True) if reduced else nn.Identity()
        self.layers = nn.ModuleList(conv3x3(widths[i], mid_dim, separable=separable) for i in range(num_layers))
        self.concat = ConvNorm(dim + num_layers * mid_dim, out_dim, relu=True)
        self.se = EffectiveSqueezeExcite(out_dim) if squeeze else nn.Identity()
        self.residual = residual
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, out_dim, H, W)."""
        y, features = self.reduce(x), [x]
        for layer in self.layers:
            y = layer(y)
            features.append(y)
        y = torch.cat(features, dim=1)
        features.clear()  # no longer needed: the memory of all the maps
        y = self.se(self.concat(y))
        return x + self.drop_path(y) if self.residual else y
