"""Generated scenes for several tasks at once: discs and squares before one another, to be segmented and ranged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Source
from zoo.train.data.rng import derive_seed, uniforms

SHAPES, NOISE = 3, 0.6  # in a scene; width of the uniform noise


class ShapesDataModule(DataModule):
    """Noisy images `(B, 1, side, side)` float32 and targets by task.

    A scene holds three shapes, discs or squares, at depths between 0 and 1, where near ones hide far ones; the ground
    is at depth 1. Nearer is brighter: 1 - depth, plus uniform noise. The targets are "semseg", `(B, side, side)` int64:
    0 ground, 1 disc, 2 square; and "depth", `(B, 1, side, side)` float32. Brightness tells the depth but for the noise,
    and the ground from a shape, but not one shape from the other.

    Args:
        side: pixels along each axis.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: scenes per epoch and split. Training scenes are drawn anew each epoch;
            the others are the same for every seed.

    Raises:
        ValueError: a side below 8, or no samples.
    """

    in_chans = 1
    dense_tasks = {"semseg": 3, "depth": 1}  # noqa: RUF012

    def __init__(
        self,
        *,
        side: int = 16,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 4096,
        val_samples: int = 256,
        test_samples: int = 512,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if side < 8 or min(train_samples, val_samples, test_samples) < 1:
            raise ValueError(
                f"side must be >= 8 and each split hold a scene, got side={side}, train_samples={train_samples}, "
                f"val_samples={val_samples}, test_samples={test_samples}"
            )
        self.side, self.samples = side, {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def demands(self) -> dict[str, Any]:
        return {
            "in_chans": self.in_chans, "img_size": self.side, "num_classes": 0, "classification": False,
            "dense_tasks": self.dense_tasks,
        }  # fmt: skip

    @property
    def preparation(self) -> dict[str, Any]:
        return {"mean": (0.0,), "std": (1.0,), "crop_pct": 1.0}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {
            split: Scenes(self.side, samples, seeds[split], resample=split == "train")
            for split, samples in self.samples.items()
        }


class Scenes:
    """`samples` images and targets, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(self, side: int, samples: int, seed: int, resample: bool = False) -> None:
        self.side, self.samples, self.seed, self.resample = side, samples, seed, resample

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        indices = indices + epoch * self.samples if self.resample else indices
        numbers = uniforms(indices, 5 * SHAPES, self.seed, 0).float().view(-1, SHAPES, 5, 1, 1)
        x, y, size, depth, kind = numbers.unbind(2)  # (B, shapes, 1, 1) each
        axis = (torch.arange(self.side) + 0.5) / self.side
        radius = 0.12 + 0.16 * size
        right, down = (axis - x) / radius, (axis[:, None] - y) / radius  # (B, shapes, 1, side), (B, shapes, side, 1)
        square = kind < 0.5
        inside = torch.where(square, right.abs().maximum(down.abs()) <= 0.85, right.square() + down.square() <= 1)
        depths, nearest = torch.where(inside, 0.8 * depth, 1.0).min(1)  # (B, side, side) each
        kinds = (1 + square.long()).expand(-1, -1, self.side, self.side).gather(1, nearest[:, None])[:, 0]
        noise = uniforms(indices, self.side**2, self.seed, 1).float().view_as(depths) - 0.5
        targets = {"semseg": kinds.where(depths < 1, 0), "depth": depths[:, None]}
        return (1 - depths + NOISE * noise)[:, None], targets
