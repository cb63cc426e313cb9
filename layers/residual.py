"""Residual branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.drop import DropPath


class Residual(nn.Module):
    """y = x + drop_path(branch(x))."""

    def __init__(self, branch: nn.Module, drop_path: float = 0.0):
        super().__init__()
        self.branch = branch
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> (B, ...)."""
        return x + self.drop_path(self.branch(x))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Where the branch is one size-keeping depthwise convolution, that convolution with 1 added to its middle tap;
        otherwise the layer itself."""
        conv = self.branch
        if not isinstance(conv, nn.Conv2d) or conv.groups != conv.out_channels or conv.stride != (1, 1):
            return self
        if getattr(conv, "activation", None):
            return self
        height, width = conv.kernel_size
        conv.weight[:, :, height // 2, width // 2] += 1
        return conv
