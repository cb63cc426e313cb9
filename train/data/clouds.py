"""Generated clouds of points on the surfaces of eight shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, integers, uniforms

Surface = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _turned(a: Tensor) -> tuple[Tensor, Tensor]:
    return (2 * math.pi * a).cos(), (2 * math.pi * a).sin()


def _sphere(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (x, y), z = _turned(b), 2 * a - 1
    radius = (1 - z * z).sqrt()
    return radius * x, radius * y, z


def _cube(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    face, side = (6 * c).floor(), 2 * ((6 * c).floor() % 2) - 1
    one, two = 2 * a - 1, 2 * b - 1
    x = torch.where(face < 2, side, one)
    y = torch.where((face >= 2) & (face < 4), side, torch.where(face < 2, one, two))
    return x, y, torch.where(face >= 4, side, two)


def _cylinder(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = _turned(b)
    radius = torch.where(c < 0.6, 1.0, a.sqrt())
    return radius * x, radius * y, torch.where(c < 0.6, 2 * a - 1, 2 * (c > 0.8).double() - 1)


def _cone(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (x, y), radius = _turned(b), a.sqrt()
    return radius * x, radius * y, torch.where(c < 0.3, -1.0, 1 - 2 * radius)


def _torus(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (x, y), (out, z) = _turned(a), _turned(b)
    return (0.7 + 0.3 * out) * x, (0.7 + 0.3 * out) * y, 0.3 * z


def _pyramid(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = _turned(b)
    square = a.sqrt() / x.abs().maximum(y.abs())
    return square * x, square * y, torch.where(c < 0.3, -1.0, 1 - 2 * a.sqrt())


def _helix(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = _turned(2 * a)
    return (0.85 + 0.2 * (b - 0.5)) * x, (0.85 + 0.2 * (b - 0.5)) * y, 2 * a - 1 + 0.2 * (c - 0.5)


def _cross(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    along = 2 * a - 1
    return torch.where(c < 0.5, along, 0.0), torch.where(c < 0.5, 0.0, along), 2 * b - 1


SHAPES: dict[str, Surface] = {
    "sphere": _sphere, "cube": _cube, "cylinder": _cylinder, "cone": _cone, "torus": _torus, "pyramid": _pyramid,
    "helix": _helix, "cross": _cross,
}  # fmt: skip


class CloudsDataModule(DataModule):
    """Clouds `(B, points, 3)` float32 of points on the surface of a shape, and which of `SHAPES` it is, `(B,)` int64.

    A shape is squeezed along its axes, turned by any angle round z after a tilt of up to `tilt` degrees, and lies
    within the unit ball. Its points are off by up to `noise` along each axis. A part of them, up to the share `hidden`,
    is missing on one side, as where a scanner saw it from the other: these are NaN.

    Args:
        points: of a cloud, missing ones among them.
        tilt, noise, hidden: see above.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: clouds per epoch and split. Those to train on are drawn anew each
            epoch; the others are the same for every seed.

    Raises:
        ValueError: fewer than 8 points, no clouds, a negative tilt or noise, or a share that is not in [0, 1).
    """

    def __init__(
        self,
        *,
        points: int = 256,
        tilt: float = 30.0,
        noise: float = 0.03,
        hidden: float = 0.5,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 8_000,
        val_samples: int = 500,
        test_samples: int = 1_000,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        counted = min(train_samples, val_samples, test_samples) >= 1 and points >= 8
        if not counted or tilt < 0 or noise < 0 or not 0 <= hidden < 1:
            raise ValueError(
                f"points must be >= 8, samples >= 1, tilt and noise >= 0 and hidden in [0, 1), got points={points}, "
                f"train_samples={train_samples}, val_samples={val_samples}, test_samples={test_samples}, tilt={tilt}, "
                f"noise={noise}, hidden={hidden}"
            )
        self.points, self.tilt, self.noise, self.hidden = points, tilt, noise, hidden
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def preparation(self) -> dict[str, Any]:
        return {"label_names": tuple(SHAPES)}

    @property
    def demands(self) -> dict[str, Any]:
        return {"in_chans": 3, "num_classes": len(SHAPES)}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {split: Clouds(self, self.samples[split], seed, split == "train") for split, seed in seeds.items()}


class Clouds:
    """`samples` clouds and their shapes, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(self, of: CloudsDataModule, samples: int, seed: int, resample: bool = False) -> None:
        self.of, self.samples, self.seed, self.resample = of, samples, seed, resample

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        of = self.of
        indices = indices + epoch * self.samples if self.resample else indices
        kinds = integers(indices, 1, len(SHAPES), self.seed, 0)[:, 0]
        numbers, drawn = uniforms(indices, 9, self.seed, 1), uniforms(indices, 6 * of.points, self.seed, 2)
        drawn = drawn.view(-1, of.points, 6)
        every = torch.stack([torch.stack(shape(*drawn[..., :3].unbind(-1)), -1) for shape in SHAPES.values()])
        cloud = every[kinds, torch.arange(len(kinds))] * (0.6 + 0.4 * numbers[:, None, :3])
        cloud = cloud @ _turns(2 * math.pi * numbers[:, 3], math.radians(of.tilt) * (2 * numbers[:, 4] - 1)).mT
        cloud = cloud + 2 * of.noise * (drawn[..., 3:] - 0.5)
        cloud = cloud * ((0.6 + 0.35 * numbers[:, 5]) / cloud.norm(dim=-1).amax(1))[:, None, None]
        side = torch.stack(_sphere(*numbers[:, 6:9].unbind(1)), -1)
        depth = (cloud @ side[..., None])[..., 0]
        missing = (of.hidden * numbers[:, 8, None] * of.points).long()
        hidden = depth.argsort(1).argsort(1) < missing
        return cloud.masked_fill(hidden[..., None], math.nan).float(), kinds


def _turns(round_z: Tensor, tilt: Tensor) -> Tensor:
    """(B, 3, 3): a tilt round x, then a turn round z."""
    zero, one = torch.zeros_like(tilt), torch.ones_like(tilt)
    tilted = torch.stack([one, zero, zero, zero, tilt.cos(), -tilt.sin(), zero, tilt.sin(), tilt.cos()], -1)
    turned = torch.stack([round_z.cos(), -round_z.sin(), zero, round_z.sin(), round_z.cos(), zero, zero, zero, one], -1)
    return turned.view(-1, 3, 3) @ tilted.view(-1, 3, 3)
