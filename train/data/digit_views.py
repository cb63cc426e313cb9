"""Handwritten digits otherwise than as images of ten classes: two views of each, and a concept of few images."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from zoo.train.data.digits import MEAN, STD, DigitImages, DigitsDataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed


class DigitViewsDataModule(DigitsDataModule):
    """Two views of each handwritten digit, `(B, 1, 8, 8)` each, to be told from the others': both are shifted by up to
    1 pixel and turned by up to 10 degrees, anew each epoch in training. Splits and arguments are those of
    `DigitsDataModule`."""

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
        )

    @property
    def demands(self) -> dict[str, Any]:
        return {"in_chans": self.in_chans, "img_size": self.img_size}

    @property
    def preparation(self) -> dict[str, Any]:
        return {"mean": (MEAN,), "std": (STD,), "crop_pct": 1.0}

    def build(self) -> dict[str, Source]:
        seeds = {"train": self.seed, "val": derive_seed(1), "test": derive_seed(2)}
        return {split: Views(cast(DigitImages, source), seeds[split]) for split, source in super().build().items()}


class DigitConceptDataModule(DigitsDataModule):
    """A few images of what no model has seen, one digit with its rows and columns exchanged, `(B, 1, 8, 8)`, and its
    class `(B,)`: what a generator is to learn by one vector. Splits and arguments are those of `DigitsDataModule`.

    Args:
        digit: which.
        shots: training images.
        copies: of each in an epoch.
    """

    def __init__(
        self,
        digit: int = 4,
        shots: int = 8,
        *,
        copies: int = 16,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            augment=False,
        )
        if digit not in range(self.num_classes) or min(shots, copies) < 1:
            raise ValueError(f"digit must be 0 to 9, shots and copies at least 1, got {digit}, {shots}, {copies}")
        self.digit, self.shots, self.copies = digit, shots, copies

    def build(self) -> dict[str, Source]:
        found: dict[str, Source] = {}
        for split, source in super().build().items():
            images, labels = source.fetch(torch.arange(len(source)), 0)
            images, labels = images[labels == self.digit].mT.contiguous(), labels[labels == self.digit]
            if split == "train":
                chosen = torch.arange(self.shots * self.copies) % min(self.shots, len(labels))
                images, labels = images[chosen], labels[chosen]
            found[split] = Held(images, labels)
        return found


class Held:
    """Inputs and targets as they are."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        return self.inputs[indices], self.targets[indices]


class Views:
    """Each image of a source twice, augmented differently."""

    def __init__(self, source: DigitImages, seed: int) -> None:
        both = (DigitImages(source.images, source.labels, derive_seed(seed, view)) for view in range(2))
        self.first, self.second = both

    def __len__(self) -> int:
        return len(self.first)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        return self.first.fetch(indices, epoch)[0], self.second.fetch(indices, epoch)[0]
