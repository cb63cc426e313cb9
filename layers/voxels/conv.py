"""Convolutions over the voxels that there are."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from zoo.layers.options import require_at_least
from zoo.layers.voxels.sites import Sites, Triple, Voxels, distinct, inside


class SubmanifoldConv(nn.Module):
    """A convolution whose output has the places of its input; what is empty counts as zero.

    Args:
        in_dim, out_dim: channels.
        kernel: places along z, y and x, odd numbers.
        bias: add one.

    Raises:
        ValueError: for sizes below 1 or an even kernel.

    Paper: Graham et al., "3D Semantic Segmentation with Submanifold Sparse Convolutional Networks", arXiv 1711.10275.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: Triple = (3, 3, 3), bias: bool = False):
        super().__init__()
        _check(kernel)
        self.kernel = kernel
        self.linear = nn.Linear(kernel[0] * kernel[1] * kernel[2] * in_dim, out_dim, bias=bias)

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x (M, in_dim) at the places -> (M, out_dim)."""
        return self.linear(gathered(x, sites.neighbors(self.kernel)).flatten(1))


class DepthwiseConv(nn.Module):
    """The same with a number a channel for each place.

    Args:
        dim: channels.
        kernel: places along z, y and x, odd numbers.

    Raises:
        ValueError: for sizes below 1 or an even kernel.
    """

    def __init__(self, dim: int, kernel: Triple):
        super().__init__()
        require_at_least(1, dim=dim)
        _check(kernel)
        self.kernel = kernel
        self.weight = nn.Parameter(torch.randn(kernel[0] * kernel[1] * kernel[2], dim))

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x (M, dim) at the places -> (M, dim)."""
        return (gathered(x, sites.neighbors(self.kernel)) * self.weight).sum(1)


class SparseConv(nn.Module):
    """A convolution with a stride, whose output has every place that an input reaches.

    Args:
        in_dim, out_dim: channels.
        kernel, stride, padding: along z, y and x.

    Raises:
        ValueError: for sizes below 1 or a negative padding.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: Triple, stride: Triple, padding: Triple):
        super().__init__()
        require_at_least(1, kernel=min(kernel), stride=min(stride))
        require_at_least(0, padding=min(padding))
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.linear = nn.Linear(kernel[0] * kernel[1] * kernel[2] * in_dim, out_dim, bias=False)

    def forward(self, x: Tensor, sites: Sites) -> Voxels:
        """x (M, in_dim) at the places -> features (P, out_dim) at those reached, in the order of their grid."""
        place = sites.coordinates
        offsets = torch.tensor([(0, *k) for k in product(*map(range, self.kernel))], device=place.device)
        stride = torch.tensor((1, *self.stride), device=place.device)
        padding = torch.tensor((0, *self.padding), device=place.device)
        reached = place[:, None] + padding - offsets  # (M, K, 4), times the stride
        target = reached.div(stride, rounding_mode="floor")
        shape = (sites.shape[0], *self.outputs(sites.shape[1:]))
        there = (target * stride == reached).all(-1) & inside(target, shape)
        there = there if sites.valid is None else there & sites.valid[:, None]
        found = distinct(target, shape, there)
        rows = sites.find(found.coordinates[:, None] * stride - padding + offsets)
        return Voxels(self.linear(gathered(x, rows).flatten(1)), found)

    def outputs(self, places: tuple[int, ...]) -> Triple:
        """The grid of the output, of one of so many places along z, y and x."""
        z, y, x = (
            (n + 2 * p - k) // s + 1 for n, k, s, p in zip(places, self.kernel, self.stride, self.padding, strict=True)
        )
        return z, y, x


def gathered(x: Tensor, rows: Tensor) -> Tensor:
    """x (M, C) at rows (..., K), zeros at -1 -> (..., K, C)."""
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return padded[torch.where(rows < 0, x.shape[0], rows)]


def _check(kernel: Triple) -> None:
    if any(size < 1 or size % 2 == 0 for size in kernel):
        raise ValueError(f"kernel must be odd along z, y and x, got {kernel}")
