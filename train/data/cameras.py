"""Generated scenes of boxes around a mast with cameras, rendered by rays."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoo.spatial import Rig, ground
from zoo.train.data.base import DataModule
from zoo.train.data.loader import Source
from zoo.train.data.rng import derive_seed, integers, uniforms

NEAREST = 3.0  # metres from the mast to the middle of a box
SIDES, HEIGHTS = (0.6, 1.5), (0.6, 2.0)  # half sides and heights of boxes
NOISE = 0.05


class CamerasDataModule(DataModule):
    """Images `(B, cameras, 3, height, width)` float32 of what stands around, and targets of what does.

    Up to `boxes` boxes of one colour each, of different sizes, stand on grey ground under a bright sky. Their faces
    are shaded by the way they look. Targets are `"occupancy"`, `(B, cells, cells)` float32, 1 for a cell of the ground
    whose middle is in a box, y by y, and `"depth"`, `(B, cameras, height / 2, width / 2)` int64, the bin of what is
    seen in the middle of two by two pixels, -1 where that is nearer than the bins or further.

    Args:
        cameras, height, width, camera_height, view_angle, near, far, num_bins, reach, cells: see `DFA3DConfig`.
        boxes: at most.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: scenes per epoch and split. Those to train on are drawn anew each
            epoch; the others are the same for every seed.

    Raises:
        ValueError: a number of boxes or scenes below 1, or a reach of 4 or less.
    """

    def __init__(
        self,
        *,
        cameras: int = 4,
        height: int = 24,
        width: int = 32,
        camera_height: float = 1.5,
        view_angle: float = 100.0,
        near: float = 1.0,
        far: float = 11.0,
        num_bins: int = 20,
        reach: float = 8.0,
        cells: int = 16,
        boxes: int = 4,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 4_000,
        val_samples: int = 100,
        test_samples: int = 200,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if min(boxes, train_samples, val_samples, test_samples) < 1 or reach <= NEAREST + 1:
            raise ValueError(
                f"boxes and samples must be >= 1 and reach above {NEAREST + 1}, got boxes={boxes}, "
                f"train_samples={train_samples}, val_samples={val_samples}, test_samples={test_samples}, reach={reach}"
            )
        self.rig = Rig(cameras, camera_height, view_angle, (height, width), near, far)
        self.num_bins, self.reach, self.cells, self.boxes = num_bins, reach, cells, boxes
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def demands(self) -> dict[str, Any]:
        rig = self.rig
        return {
            "num_cameras": rig.cameras, "img_size": rig.image, "in_chans": 3, "camera_height": rig.height,
            "view_angle": rig.view, "near": rig.near, "far": rig.far, "num_bins": self.num_bins, "reach": self.reach,
            "cells": self.cells,
        }  # fmt: skip

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {split: CameraScenes(self, self.samples[split], seed, split == "train") for split, seed in seeds.items()}


class CameraScenes:
    """`samples` scenes, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(self, of: CamerasDataModule, samples: int, seed: int, resample: bool = False) -> None:
        self.of, self.samples, self.seed, self.resample = of, samples, seed, resample

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        of, rig = self.of, self.of.rig
        indices = indices + epoch * self.samples if self.resample else indices
        low, high, colors = self._boxes(indices)
        images, _ = rendered(low, high, colors, rig.rays(), rig.height)
        noise = uniforms(indices, images[0].numel(), self.seed, 3).view_as(images) - 0.5
        _, depth = rendered(low, high, colors, rig.rays(2), rig.height)
        bins = ((depth - rig.near) / (rig.far - rig.near) * of.num_bins).floor()
        bins = torch.where((bins >= 0) & (bins < of.num_bins), bins, -1).long()
        middle = ground(of.reach, of.cells, 1, 1.0)[:, 0, :2].double()
        inside = ((middle > low[:, :, None, :2]) & (middle < high[:, :, None, :2])).all(-1).any(1)
        occupancy = inside.float().unflatten(1, (of.cells, of.cells))
        return (images + 2 * NOISE * noise).movedim(-1, 2).float(), {"occupancy": occupancy, "depth": bins}

    def _boxes(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Corners (B, boxes, 3) twice, and colours (B, boxes, 3); those that are not there lie below the ground."""
        of = self.of
        numbers = uniforms(indices, 8 * of.boxes, self.seed, 0).view(-1, of.boxes, 8)
        count = 1 + integers(indices, 1, of.boxes, self.seed, 1)
        away = NEAREST + (of.reach - 1 - NEAREST) * numbers[..., 0]
        angle = 2 * math.pi * numbers[..., 1]
        middle = torch.stack([away * angle.cos(), away * angle.sin()], -1)
        side = SIDES[0] + (SIDES[1] - SIDES[0]) * numbers[..., 2:4]
        height = HEIGHTS[0] + (HEIGHTS[1] - HEIGHTS[0]) * numbers[..., 4:5]
        low, high = torch.cat([middle - side, 0 * height], -1), torch.cat([middle + side, height], -1)
        absent = (torch.arange(of.boxes) >= count)[..., None]
        return low.masked_fill(absent, -9.0), high.masked_fill(absent, -9.0), 0.2 + 0.8 * numbers[..., 5:8]


def rendered(low: Tensor, high: Tensor, colors: Tensor, rays: Tensor, height: float) -> tuple[Tensor, Tensor]:
    """What rays meet first.

    Args:
        low, high: corners of boxes, (B, boxes, 3).
        colors: of them, (B, boxes, 3).
        rays: where they are at depth 1, (V, H, W, 3) from a point at ``height``.
        height: of that point.

    Returns:
        Colours (B, V, H, W, 3) and depths (B, V, H, W), infinite for the sky.
    """
    origin, rays = torch.tensor([0.0, 0.0, height], dtype=torch.float64), rays.double()
    flat = rays.flatten(0, -2)  # (R, 3)
    inverse = 1 / torch.where(flat.abs() < 1e-9, 1e-9, flat)
    first, second = ((corner - origin)[:, :, None] * inverse for corner in (low, high))  # (B, boxes, R, 3)
    enter, axis = first.minimum(second).max(-1)
    leave = first.maximum(second).amin(-1)
    away = torch.where((enter < leave) & (enter > 0), enter, math.inf)
    nearest, which = away.min(1)  # (B, R)
    floor = torch.where(flat[:, 2] < 0, -height * inverse[:, 2], math.inf)
    shade = torch.tensor([0.7, 0.85, 1.0], dtype=torch.float64)[axis.gather(1, which[:, None])[:, 0]]
    color = colors.gather(1, which[..., None].expand(-1, -1, 3)) * shade[..., None]
    beyond = torch.where(torch.isinf(floor), 0.9, 0.4)[:, None]
    color = torch.where((nearest < floor)[..., None], color, beyond)
    depth = nearest.minimum(floor)
    shape = (len(low), *rays.shape[:-1])
    return color.view(*shape, 3), depth.view(shape)
