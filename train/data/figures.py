"""Generated figures of ten kinds, still or moving, for models that make images and clips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.digits import Tokens
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, uniforms

MEAN, STD = 0.106, 0.251  # of the pixels of 16 x 16 images
KINDS = ("disc", "ring", "square", "frame", "diamond", "triangle", "plus", "saltire", "bar", "post")
FASTEST = 0.06  # of the side, a frame
NUMBERS = 7  # that a figure is drawn by: kind, place (2), size, brightness, velocity (2)


class FiguresDataModule(DataModule):
    """One light figure on a dark ground, `(B, 1, side, side)` float32 images `(pixel - MEAN) / STD`, and its kind,
    `(B,)` int64: a number of `KINDS`. Place, size and brightness are drawn at random; edges are smooth over a pixel.

    Args:
        side: pixels along each axis.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: images per epoch and split. Training images are drawn anew each epoch;
            the others are the same for every seed.

    Raises:
        ValueError: a side below 8, or no samples.
    """

    num_classes = len(KINDS)
    in_chans = 1

    def __init__(
        self,
        *,
        side: int = 16,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 2048,
        val_samples: int = 256,
        test_samples: int = 512,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if side < 8 or min(train_samples, val_samples, test_samples) < 1:
            raise ValueError(
                f"side must be >= 8 and each split hold a sample, got side={side}, train_samples={train_samples}, "
                f"val_samples={val_samples}, test_samples={test_samples}"
            )
        self.side, self.samples = side, {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def demands(self) -> dict[str, Any]:
        return {"in_chans": self.in_chans, "img_size": self.side, "num_classes": self.num_classes}

    @property
    def preparation(self) -> dict[str, Any]:
        return {"mean": (MEAN,), "std": (STD,)}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {
            split: Figures(self.side, samples, seeds[split], resample=split == "train", frames=self.frames)
            for split, samples in self.samples.items()
        }

    frames: int | None = None


class MovingFiguresDataModule(FiguresDataModule):
    """Clips `(B, 1, frames, side, side)` of such a figure that moves at a constant speed and is thrown back by the
    edges, and its kind `(B,)`.

    Args:
        frames: of a clip.
        side, batch_size, eval_batch_size, num_workers, seed, train_samples, val_samples, test_samples: as of
            `FiguresDataModule`.

    Raises:
        ValueError: as of `FiguresDataModule`, or less than one frame.
    """

    def __init__(
        self,
        *,
        frames: int = 8,
        side: int = 16,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 1024,
        val_samples: int = 64,
        test_samples: int = 128,
    ) -> None:
        super().__init__(
            side=side, batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed,
            train_samples=train_samples, val_samples=val_samples, test_samples=test_samples,
        )  # fmt: skip
        if frames < 1:
            raise ValueError(f"frames must be >= 1, got {frames}")
        self.frames = frames

    @property
    def demands(self) -> dict[str, Any]:
        return {**super().demands, "frames": self.frames}


class FigureTokensDataModule(FiguresDataModule):
    """Figures of 16 x 16 pixels as the codes of a tokenizer, `(B, groups, tokens)` int64 indices, and their kinds.

    Args:
        tokenizer: name of a `WeTok` with bundled weights, or "local-dir:FOLDER".
        batch_size, eval_batch_size, num_workers, seed, train_samples, val_samples, test_samples: as of
            `FiguresDataModule`.
    """

    def __init__(
        self,
        tokenizer: str = "wetok_shapes_nano",
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 2048,
        val_samples: int = 256,
        test_samples: int = 512,
    ) -> None:
        super().__init__(
            batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed,
            train_samples=train_samples, val_samples=val_samples, test_samples=test_samples,
        )  # fmt: skip
        self.tokenizer = tokenizer

    preparation: dict[str, Any] = {}  # noqa: RUF012  (tokens are what the images are)

    @property
    def demands(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def build(self) -> dict[str, Source]:
        import zoo

        named = not self.tokenizer.startswith("local-dir:")
        model = zoo.create_model(self.tokenizer, pretrained=named).eval()
        return {split: Tokens(source, model) for split, source in super().build().items()}


class Figures:
    """`samples` images or clips, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(self, side: int, samples: int, seed: int, resample: bool = False, frames: int | None = None) -> None:
        self.side, self.samples, self.seed, self.resample, self.frames = side, samples, seed, resample, frames

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        indices = indices + epoch * self.samples if self.resample else indices
        numbers = uniforms(indices, NUMBERS, self.seed).float()
        kinds = (numbers[:, 0] * len(KINDS)).long()
        radius = 0.18 + 0.14 * numbers[:, 3]
        light = 0.6 + 0.4 * numbers[:, 4]
        count = 1 if self.frames is None else self.frames
        time = torch.arange(count)
        room = (1 - 2 * radius)[:, None, None]  # of the middle, along each axis
        start, speed = numbers[:, 1:3, None], FASTEST * (2 * numbers[:, 5:7, None] - 1)
        places = radius[:, None, None] + room * folded(start + speed / room * time)  # (B, 2, frames)
        pixels = light.view(-1, 1, 1, 1) * drawn(kinds, places, radius, self.side)  # (B, frames, side, side)
        images = (pixels - MEAN) / STD
        return (images if self.frames is None else images[:, None]), kinds


def folded(x: Tensor) -> Tensor:
    """Numbers as what is thrown back at 0 and 1 comes to stand."""
    return 1 - (x % 2 - 1).abs()


def drawn(kinds: Tensor, places: Tensor, radius: Tensor, side: int) -> Tensor:
    """Figures in [0, 1], (B, frames, side, side).

    Args:
        kinds: (B,) numbers of `KINDS`.
        places: (B, 2, frames), of the middles (right, down) over the side.
        radius: (B,) over the side.
    """
    axis = (torch.arange(side) + 0.5) / side
    scale = radius.view(-1, 1, 1, 1)
    x = (axis - places[:, 0, :, None, None]) / scale  # (B, frames, 1, side)
    y = (axis[:, None] - places[:, 1, :, None, None]) / scale  # (B, frames, side, 1)
    a, b = x.abs(), y.abs()
    length, widest = (x.square() + y.square()).sqrt(), a.maximum(b)
    aslant = (x - y).abs().mul(0.5**0.5), (x + y).abs().mul(0.5**0.5)
    distances = (
        length - 1,
        (length - 0.72).abs() - 0.28,
        widest - 0.85,
        (widest - 0.65).abs() - 0.2,
        (a + b - 1) * 0.5**0.5,
        (y - 0.7).maximum(0.87 * a - 0.5 * (y + 1)),
        (a - 1).maximum(b - 0.3).minimum((a - 0.3).maximum(b - 1)),
        aslant[0].minimum(aslant[1]).sub(0.25).maximum(widest - 0.85),
        (a - 1).maximum(b - 0.3),
        (a - 0.3).maximum(b - 1),
    )  # each (B, frames, side, side): of the edge, negative inside, over the radius
    each = torch.stack([part.expand(len(kinds), places.shape[2], side, side) for part in distances], 1)
    chosen = each[torch.arange(len(kinds)), kinds]
    return (0.5 - chosen * scale * side).clamp(0, 1)
