"""Batch normalisation that stays in float32 and can be folded away."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.layers.linear import is_plain
from zoo.layers.precision import KeepsFloat32


class TraceableNorm(KeepsFloat32, _BatchNorm):
    """Weight, bias and statistics stay float32 in a low-precision model; symbolic tracers pass through.

    Attributes:
        frozen: it is in eval mode also when its model trains: its statistics stay.
    """

    frozen: bool = False
    float32_parameters = ("weight", "bias")
    float32_buffers = ("running_mean", "running_var")

    def train(self, mode: bool = True) -> TraceableNorm:
        """As of every module, but for what is frozen."""
        return super().train(mode and not self.frozen)

    def _check_input_dim(self, input: Tensor) -> None:
        if not isinstance(input, Proxy):  # which has no shape
            super()._check_input_dim(input)


class BatchNorm2d(TraceableNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose weight starts at ``gamma``; weight, bias and statistics stay float32 in a low-precision
    model.

    Paper: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167.
    """

    def __init__(self, dim: int, gamma: float = 1.0):
        super().__init__(dim)
        nn.init.constant_(self.weight, gamma)


class MapNorm(BatchNorm2d):
    """Batch norm of a map that no convolution of its own comes before."""

    def fuse(self) -> nn.Module:
        """y = s x + t."""
        return Affine(*affine(self))


class Affine(nn.Module):
    """y = s x + t with a number of each for every channel of a map (B, dim, H, W)."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(t.detach()[:, None, None]) for t in (scale, shift))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        return torch.addcmul(self.shift, x, self.scale).to(x.dtype)


class BatchNorm1d(TraceableNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that stays float32 in a low-precision model."""


class NormLinear(nn.Module):
    """Batch norm, then a linear classifier: truncated-normal weight, zero bias. x (B, dim) -> (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.bn = BatchNorm1d(dim)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim) -> (B, num_classes)."""
        return self.linear(self.bn(x))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """W (s x + t) + b = (W s) x + (W t + b), as one linear layer; as it is where the linear layer is another."""
        if not is_plain(self.linear):
            return self
        scale, shift = affine(self.bn)
        linear = nn.Linear(self.linear.in_features, self.linear.out_features).to(self.linear.weight)
        wide = self.linear.weight.to(scale.dtype)
        linear.weight.copy_(wide * scale)
        linear.bias.copy_(wide @ shift + self.linear.bias)
        return linear


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale s and shift t of a batch norm in eval mode: y = s x + t, one number a channel."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
