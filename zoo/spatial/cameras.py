"""Cameras on a mast that look outward: where points are seen, and the rays of pixels."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Rig:
    """Pinhole cameras above the origin, turned evenly round it, the first along x; z is up, lengths are metres.

    Args:
        cameras: how many.
        height: above the ground.
        view: degrees that an image shows from left to right.
        image: its height and width, in pixels.
        near, far: between which depths, along the camera's axis, lie the bins.
    """

    cameras: int
    height: float
    view: float
    image: tuple[int, int]
    near: float
    far: float

    @property
    def focal(self) -> float:
        """Focal length, in pixels."""
        return self.image[1] / 2 / math.tan(math.radians(self.view) / 2)

    def axes(self) -> Tensor:
        """(cameras, 3, 3): rows that point to the right, down and forward."""
        angle = 2 * math.pi * torch.arange(self.cameras) / self.cameras
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        ways = ((sin, -cos, zero), (zero, zero, -one), (cos, sin, zero))
        return torch.stack([torch.stack(way, -1) for way in ways], 1)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points (..., 3) in space to the images.

        Returns:
            (cameras, ..., 3) of u, v, d, between 0 and 1 from left to right, from top to bottom and from near to far;
            (cameras, ...) bool, whether a point is in front of the camera and in the image.
        """
        above = points - points.new_tensor([0, 0, self.height])
        turned = torch.einsum("vac,...c->v...a", self.axes().to(points), above)
        x, y, depth = turned.unbind(-1)
        height, width = self.image
        ahead = depth > 1e-5
        away = torch.where(ahead, depth, 1.0)
        u, v = self.focal * x / away / width + 0.5, self.focal * y / away / height + 0.5
        seen = ahead & (u > 0) & (u < 1) & (v > 0) & (v < 1)
        return torch.stack([u, v, (depth - self.near) / (self.far - self.near)], -1), seen

    def rays(self, step: int = 1) -> Tensor:
        """(cameras, H / step, W / step, 3): where the middle of each square of ``step`` pixels is at depth 1, from the
        camera."""
        height, width = self.image
        down, right = ((torch.arange(0, n, step) + (step - n) / 2) / self.focal for n in (height, width))
        grid = torch.stack([*torch.meshgrid(right, down, indexing="xy"), torch.ones(len(down), len(right))], -1)
        return torch.einsum("hwa,vac->vhwc", grid, self.axes())


def ground(reach: float, cells: int, heights: int, ceiling: float) -> Tensor:
    """(cells x cells, heights, 3): points above the middle of each cell of a square around the origin, y by y."""
    middle = ((torch.arange(cells) + 0.5) / cells * 2 - 1) * reach
    above = (torch.arange(heights) + 0.5) / heights * ceiling
    y, x, z = torch.meshgrid(middle, middle, above, indexing="ij")
    return torch.stack([x, y, z], -1).flatten(0, 1)
