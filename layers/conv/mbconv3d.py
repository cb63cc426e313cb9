"""The mobile inverted bottleneck over volumes."""

from __future__ import annotations

from torch import Tensor, nn


class MBConv3d(nn.Module):
    """y = drop(norm(W2 silu(norm(depthwise(silu(norm(W1 x)))))), without a residual: a branch of a reversible layer.

    W1 widens the channels, W2 narrows them again, linearly; the depthwise convolution keeps the size. Norms are group
    norms, which do not remember batches and so bear recomputation; the last one starts at 0, which closes the branch.

    Args:
        dim: channels.
        expand_ratio: hidden channels over dim.
        kernel_size: odd side of the depthwise kernel.
        num_groups: of the norms.
        drop_rate: dropout of whole channels.

    Raises:
        ValueError: for an even kernel_size, or num_groups that do not divide dim.

    Papers: Sandler et al., "MobileNetV2", arXiv 1801.04381; Pendse et al., "Memory Efficient 3D U-Net with Reversible
    Mobile Inverted Bottlenecks for Brain Tumor Segmentation", arXiv 2104.09648.
    """

    def __init__(
        self, dim: int, expand_ratio: int = 6, kernel_size: int = 3, *, num_groups: int = 1, drop_rate: float = 0.0
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if dim % num_groups:
            raise ValueError(f"num_groups must divide the channels: got {dim} channels, num_groups {num_groups}")
        hidden_dim = expand_ratio * dim
        self.expand = nn.Conv3d(dim, hidden_dim, 1, bias=False)
        self.norm1 = nn.GroupNorm(num_groups, hidden_dim)
        self.depthwise = nn.Conv3d(
            hidden_dim, hidden_dim, kernel_size, padding=kernel_size // 2, groups=hidden_dim, bias=False
        )
        self.norm2 = nn.GroupNorm(num_groups, hidden_dim)
        self.project = nn.Conv3d(hidden_dim, dim, 1, bias=False)
        self.norm3 = nn.GroupNorm(num_groups, dim)
        self.act = nn.SiLU()
        self.drop = nn.Dropout3d(drop_rate)
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, D, H, W) -> the same shape."""
        x = self.act(self.norm1(self.expand(x)))
        x = self.act(self.norm2(self.depthwise(x)))
        return self.drop(self.norm3(self.project(x)))
