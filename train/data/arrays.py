"""Generated arrays of numbers, and what an algorithm makes of them: sums, minima, medians, order, subarrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, uniforms

RANGE = 2.0  # training numbers are in [-RANGE, RANGE)
DRAWS = 64  # of a range, until one reaches beyond that of training


def running_median(x: Tensor) -> Tensor:
    """Of the first i numbers, for each i; the middle between two."""
    ordered = [x[:, : i + 1].sort(dim=1).values for i in range(x.shape[1])]
    return torch.stack([(part[:, (n - 1) // 2] + part[:, n // 2]) / 2 for n, part in enumerate(ordered, 1)], dim=1)


def running_subarray(x: Tensor) -> Tensor:
    """The largest sum of neighbours among the first i numbers, for each i: Kadane's algorithm."""
    ending, largest = x[:, 0], [x[:, 0]]
    for number in x[:, 1:].unbind(1):
        ending = torch.maximum(number, ending + number)
        largest.append(torch.maximum(largest[-1], ending))
    return torch.stack(largest, dim=1)


ALGORITHMS: dict[str, Callable[[Tensor], Tensor]] = {  # (B, length) -> (B, length)
    "sum": lambda x: x.cumsum(1),
    "min": lambda x: x.cummin(1).values,
    "median": running_median,
    "sort": lambda x: x.sort(dim=1).values,
    "max_subarray": running_subarray,
}


class ArraysDataModule(DataModule):
    """Arrays `(B, length, 1)` float32 and, at each place, what an algorithm makes of the numbers up to it, `(B, length,
    1)` float32; "sort" gives the number that belongs there.

    The ends of an array's range are drawn uniformly, and its numbers uniformly between them: within [-2, 2) for
    training and validation, within `scale` times that for tests, where a range inside the training one is drawn again.

    Args:
        algorithm: "sum", "min" and "median" of the first numbers, "sort", or "max_subarray", the largest sum of
            neighbours among them.
        length: numbers in an array.
        scale: of test numbers, at least 1.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: arrays per epoch and split. Training arrays are drawn anew each epoch;
            the others are the same for every seed.

    Raises:
        ValueError: an unknown algorithm, no arrays or no numbers, or a scale below 1.

    Paper: arXiv 2410.01686 (there: 30,000 training arrays, the same in every epoch).
    """

    def __init__(
        self,
        *,
        algorithm: Literal["sum", "min", "median", "sort", "max_subarray"] = "sum",
        length: int = 8,
        scale: float = 10.0,
        batch_size: int = 256,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 30_000,
        val_samples: int = 1_000,
        test_samples: int = 1_000,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
        if min(length, train_samples, val_samples, test_samples) < 1 or scale < 1:
            raise ValueError(
                f"length, scale and samples must be >= 1, got length={length}, scale={scale}, "
                f"train_samples={train_samples}, val_samples={val_samples}, test_samples={test_samples}"
            )
        self.algorithm, self.length, self.scale = algorithm, length, scale
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def demands(self) -> dict[str, Any]:
        return {"in_features": 1, "out_features": 1, "length": self.length}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {
            split: Arrays(self, samples, seeds[split], self.scale if split == "test" else 1.0, split == "train")
            for split, samples in self.samples.items()
        }


class Arrays:
    """`samples` arrays, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(self, of: ArraysDataModule, samples: int, seed: int, scale: float, resample: bool) -> None:
        self.answer, self.length = ALGORITHMS[of.algorithm], of.length
        self.samples, self.seed, self.scale, self.resample = samples, seed, scale, resample

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        indices = indices + epoch * self.samples if self.resample else indices
        draws = DRAWS if self.scale > 1 else 1
        ends = self.scale * RANGE * (2 * uniforms(indices, 2 * draws, self.seed, 0).unflatten(1, (draws, 2)) - 1)
        beyond = (ends.abs().amax(-1) > RANGE) | (self.scale == 1)  # (B, draws)
        low, high = ends[torch.arange(len(ends)), beyond.int().argmax(1)].unbind(-1)
        numbers = low[:, None] + (high - low)[:, None] * uniforms(indices, self.length, self.seed, 1)
        return numbers[..., None].float(), self.answer(numbers)[..., None].float()
