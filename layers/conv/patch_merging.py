"""How EfficientViT and SHViT come from pixels to tokens, and from one resolution to the next."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.layers.conv.conv_norm import ConvMlp, ConvNorm, depthwise
from zoo.layers.conv.squeeze_excite import SqueezeExcite
from zoo.layers.residual import Residual


class ConvStem(nn.Sequential):
    """Overlapping patches: 3 x 3 convolutions of doubling width that end at ``dim``, ReLU between them.

    Raises:
        ValueError: when ``dim`` cannot be halved as often.
    """

    def __init__(self, in_chans: int, dim: int, strides: Sequence[int] = (2, 2, 2, 2)):
        last = len(strides) - 1
        if dim % 2**last:
            raise ValueError(f"a stem of {last + 1} convolutions needs dims[0] divisible by {2**last}, got {dim}")
        widths = [in_chans, *(dim // 2 ** (last - i) for i in range(last + 1))]
        super().__init__(
            *(ConvNorm(widths[i], widths[i + 1], 3, stride, relu=i < last) for i, stride in enumerate(strides))
        )


class PatchMerging(nn.Module):
    """Half the resolution through an inverted bottleneck of four times the width with squeeze-and-excitation."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        hidden = 4 * dim
        self.conv1 = ConvNorm(dim, hidden, relu=True)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden, relu=True)
        self.se = SqueezeExcite(hidden, max(8, (dim + 4) // 8 * 8))  # a quarter of hidden, to the nearest multiple of 8
        self.conv3 = ConvNorm(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, out_dim, ceil(H / 2), ceil(W / 2))."""
        return self.conv3(self.se(self.conv2(self.conv1(x))))


class MergingDownsample(nn.Sequential):
    """``PatchMerging`` between two pairs of residual depthwise convolution and residual feed-forward layer.

    Paper: Liu et al., "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", arXiv
    2305.07027 ("subsample block").
    """

    def __init__(self, dim: int, out_dim: int, drop_path: float = 0.0):
        super().__init__(
            Residual(depthwise(dim), drop_path),
            Residual(ConvMlp(dim, 2 * dim), drop_path),
            PatchMerging(dim, out_dim),
            Residual(depthwise(out_dim), drop_path),
            Residual(ConvMlp(out_dim, 2 * out_dim), drop_path),
        )
