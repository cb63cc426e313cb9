"""Generated volumes to be segmented: ellipsoids with a core, beside boxes that look the same voxel by voxel."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, uniforms

BRIGHTNESS, CORE, NOISE = 1.0, 1.0, 2.0  # of a body, added inside its core, and the width of the uniform noise


class EllipsoidsDataModule(DataModule):
    """Noisy volumes `(B, 1, side, side, side)` float32 and masks `(B, 2, side, side, side)` float32 of zeros and ones.

    A volume holds one ellipsoid and one box, with their axes along the volume's, centres in the middle half of it and
    half axes of 1/8 to 1/4 of its side. Both are as bright, and brighter in a core of half their size. The first mask
    is the ellipsoid, the second its core; the box is background, so that brightness alone does not tell.

    Args:
        side: voxels along each axis.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: volumes per epoch and split. Training volumes are drawn anew each
            epoch; the others are the same for every seed.

    Raises:
        ValueError: a side below 8, or no samples.
    """

    num_classes = 2
    in_chans = 1

    def __init__(
        self,
        *,
        side: int = 16,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 1024,
        val_samples: int = 64,
        test_samples: int = 128,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if side < 8 or min(train_samples, val_samples, test_samples) < 1:
            raise ValueError(
                f"side must be >= 8 and each split hold a volume, got side={side}, train_samples={train_samples}, "
                f"val_samples={val_samples}, test_samples={test_samples}"
            )
        self.side, self.samples = side, {"train": train_samples, "val": val_samples, "test": test_samples}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {
            split: Ellipsoids(self.side, samples, seeds[split], resample=split == "train")
            for split, samples in self.samples.items()
        }


class Ellipsoids:
    """`samples` volumes and masks, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(self, side: int, samples: int, seed: int, resample: bool = False) -> None:
        self.side, self.samples, self.seed, self.resample = side, samples, seed, resample

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        indices = indices + epoch * self.samples if self.resample else indices
        numbers = (
            uniforms(indices, 12, self.seed, 0).float().view(-1, 2, 2, 3)
        )  # ellipsoid and box; centre and half axes
        centre, half_axes = numbers.unbind(2)
        centre, half_axes = (centre + 0.5) / 2 * self.side, (half_axes + 1) / 8 * self.side
        axis = torch.arange(self.side) + 0.5
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)  # (side, side, side, 3)
        offset = (grid[None, None] - _spread(centre)) / _spread(half_axes)  # (B, 2, side, side, side, 3)
        radius = torch.stack([offset[:, 0].norm(dim=-1), offset[:, 1].abs().amax(-1)], dim=1)
        brightness = (BRIGHTNESS * (radius <= 1) + CORE * (radius <= 0.5)).amax(1, keepdim=True)
        noise = uniforms(indices, self.side**3, self.seed, 1).float().view_as(brightness) - 0.5
        masks = torch.stack([radius[:, 0] <= 1, radius[:, 0] <= 0.5], dim=1)
        return brightness + NOISE * noise, masks.float()


def _spread(vectors: Tensor) -> Tensor:
    """(B, 2, 3) against a grid (side, side, side, 3)."""
    return vectors[:, :, None, None, None]
