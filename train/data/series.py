"""Generated series of many channels, some of which leave their group for a while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, distinct, uniforms

WAVES = 3  # of a signal
PERIODS = (12.0, 60.0), (4.0, 12.0)  # the shortest and longest, of the groups' waves and of anomalies
NOISE = 0.2  # standard deviation of a channel's own noise; that of a group is 1
SHORTEST, LONGEST = 8, 24  # moments of an anomaly
SHARE, HIT = 0.08, 3  # of moments that are in one, and channels that it hits


class SeriesDataModule(DataModule):
    """Windows `(B, window, channels)` float32 of a series, and `(B, channels)` bool: which channels are anomalous at
    the last moment of each.

    Every channel follows the hidden signal of its group, a sum of waves, with a factor and noise of its own. The
    series to learn from has no anomalies. In those to validate and test on now and then three
    channels follow faster signals of their own for 8 to 24 moments: with values as they always have, so that only their
    courses and groups tell.
    Series are normalised by the mean and standard deviation of the first, which the model remembers.

    Args:
        channels, groups: of the series.
        window: moments that are read at once.
        length: moments of each of the three series.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.

    Raises:
        ValueError: fewer channels than groups, a series shorter than two windows, or a size below 1.
    """

    def __init__(
        self,
        *,
        channels: int = 12,
        groups: int = 3,
        window: int = 32,
        length: int = 3_000,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if not 1 <= groups <= channels or window < 1 or length < 2 * window:
            raise ValueError(
                f"channels must be >= groups >= 1, window >= 1 and length >= 2 * window, got channels={channels}, "
                f"groups={groups}, window={window}, length={length}"
            )
        self.channels, self.groups, self.window, self.length = channels, groups, window, length
        normal, _ = self.series(derive_seed(0))
        self.mean, self.std = normal.mean(0), normal.std(0)

    @property
    def group_of(self) -> Tensor:
        """(channels,): the group of each."""
        return torch.arange(self.channels) % self.groups

    @property
    def demands(self) -> dict[str, Any]:
        return {"channels": self.channels, "window": self.window}

    @property
    def preparation(self) -> dict[str, Any]:
        return {name: tuple(getattr(self, name).tolist()) for name in ("mean", "std")}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0), "val": derive_seed(1), "test": derive_seed(2)}
        return {split: Windows(self, *self.series(seed, split != "train")) for split, seed in seeds.items()}

    def series(self, seed: int, anomalies: bool = False) -> tuple[Tensor, Tensor]:
        """(length, channels) float32 as measured, and bool, what is anomalous; factors and periods are of no seed."""
        signals = waves(self.length, self.groups, 0, seed)[:, self.group_of]
        factors, offsets = uniforms(torch.arange(2), self.channels, derive_seed(3))
        labels = torch.zeros(self.length, self.channels, dtype=torch.bool)
        if anomalies:
            for start, end, channels in self._anomalies(seed):
                labels[start:end, channels] = True
            signals = torch.where(labels, waves(self.length, self.channels, 1, seed), signals)
        noise = NOISE * normals(self.length, self.channels, seed)
        return ((0.5 + factors) * (signals + noise) + 4 * offsets).float(), labels

    def _anomalies(self, seed: int) -> Iterator[tuple[int, int, Tensor]]:
        """(start, end, channels) of each."""
        span = round((SHORTEST + LONGEST) / 2 / SHARE)  # one in each
        indices = torch.arange(max(1, self.length // span))
        hit = distinct(indices, min(HIT, self.channels), self.channels, seed, 5)
        for index, (place, size) in enumerate(uniforms(indices, 2, seed, 4).tolist()):
            start = index * span + int(place * (span - LONGEST))
            yield start, start + SHORTEST + int(size * (LONGEST - SHORTEST + 1)), hit[index]


class Windows:
    """Every window of a series, and which channels are anomalous at its last moment."""

    def __init__(self, of: SeriesDataModule, series: Tensor, labels: Tensor) -> None:
        normalised = (series - of.mean) / of.std
        self.series, self.labels = normalised.unfold(0, of.window, 1), labels[of.window - 1 :]

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        return self.series[indices].mT.contiguous(), self.labels[indices]


def waves(length: int, count: int, kind: int, seed: int) -> Tensor:
    """(length, count) float64 of variance 1: sums of `WAVES` waves whose periods depend on `kind` alone, and whose
    phases on `seed` too."""
    low, high = PERIODS[kind]
    places = uniforms(torch.arange(count), WAVES, derive_seed(6, kind))
    periods = low * (high / low) ** places  # (count, WAVES)
    phases = uniforms(torch.arange(count), WAVES, seed, 7, kind)
    turns = torch.arange(length)[:, None, None] / periods + phases
    return (2 * torch.pi * turns).sin().sum(-1) * (2 / WAVES) ** 0.5


def normals(length: int, count: int, seed: int) -> Tensor:
    """(length, count) float64 of the unit Gaussian."""
    first, second = uniforms(torch.arange(length), 2 * count, seed, 8).chunk(2, dim=1)
    return (-2 * (1 - first).log()).sqrt() * (2 * torch.pi * second).cos()
