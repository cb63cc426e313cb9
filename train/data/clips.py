"""Generated clips: shapes that move and turn back at the borders, and a bar that hides the one to be followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, integers, uniforms

SHAPES = 3  # in a picture
RADIUS, SPEED = (0.11, 0.17), (0.03, 0.08)  # of a shape, over the side of the picture; speeds a frame and axis
BAR, SWEEP = 0.4, (0.12, 0.2)  # width of the bar, which hides any shape; what it moves a frame
GRAIN = 0.03  # standard deviation of the noise of a pixel


class ClipsDataModule(DataModule):
    """Clips `(B, T, 3, S, S)` float32 in [0, 1], and a dict of what is followed in them.

    Three shapes (discs, squares, diamonds) of different colours move over a gradient, in straight lines between the
    borders. The first lies before the others; a grey bar comes in at the second frame and sweeps over the picture so
    that it hides that shape at a moment between the third frame and the third last. Targets are the dict of

        masks    (B, T, S, S) bool, what is seen of that shape
        points   (B, 1, 2) float32, a pixel (x, y) of it in the first frame
        boxes    (B, 4) float32, left, top, right and bottom of it there

    Args:
        size: S.
        frames: T, at least 6. train_frames: that of the clips to train on where it is another.
        epoch_frames: how many frames the first epochs show of the clips to train on, an epoch each: one says what an
            object is, two how to find it again.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: clips per epoch and split. Those to train on are drawn anew each
            epoch; the others are the same for every seed.

    Raises:
        ValueError: a side below 16, fewer than 6 frames, an epoch that shows none or more than there are, or no clips.
    """

    def __init__(
        self,
        *,
        size: int = 64,
        frames: int = 12,
        train_frames: int | None = None,
        epoch_frames: Sequence[int] = (),
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 2_000,
        val_samples: int = 64,
        test_samples: int = 200,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        train_frames = train_frames or frames
        clips = min(train_samples, val_samples, test_samples)
        if size < 16 or min(frames, train_frames) < 6 or clips < 1:
            raise ValueError(
                f"size must be >= 16, frames >= 6 and clips >= 1, got size={size}, frames={frames}, "
                f"train_frames={train_frames}, train_samples={train_samples}, val_samples={val_samples}, "
                f"test_samples={test_samples}"
            )
        if not all(1 <= shown <= train_frames for shown in epoch_frames):
            raise ValueError(f"epoch_frames must be in [1, {train_frames}], the frames of a clip, got {epoch_frames}")
        self.size, self.frames = size, {"train": train_frames, "val": frames, "test": frames}
        self.epoch_frames = tuple(epoch_frames)
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def demands(self) -> dict[str, Any]:
        return {"img_size": self.size, "in_chans": 3}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {split: Clips(self, split, seed) for split, seed in seeds.items()}


class Clips:
    """`samples` clips, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(self, of: ClipsDataModule, split: str, seed: int) -> None:
        self.size, self.frames, self.samples, self.seed = of.size, of.frames[split], of.samples[split], seed
        self.resample = split == "train"
        self.shown = of.epoch_frames if self.resample else ()

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        indices = indices + epoch * self.samples if self.resample else indices
        size, rows = self.size, len(indices)
        radii, places = self._paths(indices)
        shapes = self._covered(indices, radii, places)  # (B, SHAPES, T, S, S)
        bar = self._bar(indices, places[:, 0])  # (B, T, S, S)
        pictures = self._background(indices)
        colours = self._colours(indices)
        for index in reversed(range(SHAPES)):
            pictures = torch.where(shapes[:, index, :, None], colours[:, index, None, :, None, None], pictures)
        pictures = torch.where(bar[:, :, None], 0.4, pictures)
        grain = uniforms(indices, pictures[0].numel(), self.seed, 7).view_as(pictures)
        masks = shapes[:, 0] & ~bar
        first, area = masks[:, 0], torch.arange(size)
        chosen = (uniforms(indices, size * size, self.seed, 8) * first.flatten(1)).argmax(1)
        edges = []
        for axis in (1, 2):  # seen columns, then rows
            seen = first.any(axis)
            edges.append((seen.int().argmax(1), size - 1 - seen.flip(1).int().argmax(1)))
        boxes = torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], 1)
        targets = {
            "masks": masks,
            "points": torch.stack([area[chosen % size], area[chosen // size]], 1).view(rows, 1, 2).float(),
            "boxes": boxes.float(),
        }
        pictures = (pictures + GRAIN * 12**0.5 * (grain - 0.5)).clamp(0, 1).float()
        shown = self.shown[epoch] if epoch < len(self.shown) else self.frames
        return pictures[:, :shown], targets | {"masks": masks[:, :shown]}

    def _paths(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Radii (B, SHAPES) and middles (B, SHAPES, T, 2) in pixels."""
        size, rows = self.size, len(indices)
        low, high = RADIUS
        radii = size * (low + (high - low) * uniforms(indices, SHAPES, self.seed, 0))
        starts = uniforms(indices, 2 * SHAPES, self.seed, 1).view(rows, SHAPES, 1, 2)
        numbers = uniforms(indices, 2 * SHAPES, self.seed, 2).view(rows, SHAPES, 1, 2)
        signs = 2 * integers(indices, 2 * SHAPES, 2, self.seed, 3).view(rows, SHAPES, 1, 2) - 1
        speeds = signs * size * (SPEED[0] + (SPEED[1] - SPEED[0]) * numbers)
        room = size - 2 * radii[..., None, None]
        walked = starts * room + speeds * torch.arange(self.frames)[:, None]
        return radii, radii[..., None, None] + (walked.remainder(2 * room) - room).abs()

    def _covered(self, indices: Tensor, radii: Tensor, places: Tensor) -> Tensor:
        """(B, SHAPES, T, S, S): where each shape lies."""
        axis = torch.arange(self.size) + 0.5
        across = (axis - places[..., :1]).abs()[..., None, :]  # (B, SHAPES, T, 1, S)
        down = (axis - places[..., 1:]).abs()[..., :, None]
        radii = radii[..., None, None, None]
        kinds = integers(indices, SHAPES, 3, self.seed, 4)[..., None, None, None]
        disc, square, diamond = (
            across**2 + down**2 <= radii**2,
            across.maximum(down) <= 0.9 * radii,
            across + down <= (1.15 * radii),
        )
        return torch.where(kinds == 0, disc, torch.where(kinds == 1, square, diamond))

    def _bar(self, indices: Tensor, places: Tensor) -> Tensor:
        """(B, T, S, S): upright or lying, over the first shape (B, T, 2) at one moment, nowhere in the first frame."""
        size, numbers = self.size, uniforms(indices, 4, self.seed, 5)
        moment = 2 + (numbers[:, 0] * (self.frames - 4)).long()
        upright = numbers[:, 1] < 0.5
        speed = size * (SWEEP[0] + (SWEEP[1] - SWEEP[0]) * numbers[:, 2]) * (2 * (numbers[:, 3] < 0.5) - 1)
        there = places[torch.arange(len(indices)), moment]
        time = torch.arange(self.frames)
        middle = torch.where(upright, there[:, 0], there[:, 1])[:, None] + speed[:, None] * (time - moment[:, None])
        inside = (torch.arange(size) + 0.5 - middle[..., None]).abs() <= size * BAR / 2  # (B, T, S)
        inside = inside & (time > 0)[:, None]
        shape = (*inside.shape, size)
        upright = upright[:, None, None, None]
        return torch.where(upright, inside[:, :, None].expand(shape), inside[..., None].expand(shape))

    def _background(self, indices: Tensor) -> Tensor:
        """(B, 1, 3, S, S): a dark gradient."""
        numbers = 0.4 * uniforms(indices, 12, self.seed, 6).view(-1, 1, 3, 2, 2)
        share = torch.linspace(0, 1, self.size)
        across = numbers[..., :1, :] * (1 - share[:, None]) + numbers[..., 1:, :] * share[:, None]  # (B, 1, 3, S, 2)
        return across[..., :1] * (1 - share) + across[..., 1:] * share

    def _colours(self, indices: Tensor) -> Tensor:
        """(B, SHAPES, 3): bright, a third of the circle of hues apart."""
        hue = uniforms(indices, 1, self.seed, 9) + torch.arange(SHAPES) / SHAPES
        return 0.6 + 0.4 * (2 * torch.pi * (hue[..., None] - torch.arange(3) / 3)).cos()
