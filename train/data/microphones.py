"""Generated scenes of several microphones: a voice from one side, and noise from another and of each microphone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, integers, uniforms

HARMONICS, PITCH = 8, (100.0, 300.0)  # of a voice; Hz of the first
WAVES, BAND = 8, (200.0, 3500.0)  # of the noise from one side; Hz
FURTHEST = 8  # samples that a sound takes at most from the first microphone to another, either way
OWN = 0.1  # standard deviation of a microphone's own noise, over that of the voice


class MicrophonesDataModule(DataModule):
    """Mixtures `(B, mics, samples)` float32 and the voice in them `(B, 1, samples)` float32, as the first microphone
    hears it.

    A voice has eight harmonics of a pitch that glides, and swells and fades; noise is a sum of as many waves as loud as
    the voice within `spread` dB. Each comes from its own side, so that it reaches every microphone some samples earlier
    or later, the voice and the noise differently; and every microphone adds a little noise of its own. All mixtures
    have a voice of variance one.

    Args:
        mics, samples, sample_rate: of a mixture.
        spread: dB that the voice is at most louder or quieter than the noise.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: mixtures per epoch and split. Those to train on are drawn anew each
            epoch; the others are the same for every seed.

    Raises:
        ValueError: no microphone, fewer than 64 samples, a negative spread, or no mixtures.
    """

    def __init__(
        self,
        *,
        mics: int = 2,
        samples: int = 1000,
        sample_rate: int = 8000,
        spread: float = 5.0,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 4_000,
        val_samples: int = 100,
        test_samples: int = 200,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if min(mics, sample_rate, train_samples, val_samples, test_samples) < 1 or samples < 64 or spread < 0:
            raise ValueError(
                f"mics and mixtures must be >= 1, samples >= 64 and spread >= 0, got mics={mics}, samples={samples}, "
                f"spread={spread}, train_samples={train_samples}, val_samples={val_samples}, "
                f"test_samples={test_samples}"
            )
        self.mics, self.length, self.sample_rate, self.spread = mics, samples, sample_rate, spread
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def demands(self) -> dict[str, Any]:
        return {"num_mics": self.mics, "num_sources": 1}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {split: Mixtures(self, self.samples[split], seed, split == "train") for split, seed in seeds.items()}


class Mixtures:
    """`samples` mixtures and voices, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(self, of: MicrophonesDataModule, samples: int, seed: int, resample: bool = False) -> None:
        self.of, self.samples, self.seed, self.resample = of, samples, seed, resample

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        of = self.of
        indices = indices + epoch * self.samples if self.resample else indices
        voices, noises = (
            _heard(kind, integers(indices, of.mics, 2 * FURTHEST + 1, self.seed, 2 + place), of)
            for place, kind in enumerate((self._voice(indices), self._noise(indices)))
        )
        loudness = 10 ** (of.spread * (2 * uniforms(indices, 1, self.seed, 4) - 1) / 20)  # of the noise
        own = uniforms(indices, of.mics * of.length, self.seed, 5).view(-1, of.mics, of.length)
        mixtures = voices + loudness[..., None] * noises + OWN * 12**0.5 * (own - 0.5)
        return mixtures.float(), voices[:, :1].float()

    def _voice(self, indices: Tensor) -> Tensor:
        """(B, samples + 2 FURTHEST) of variance one."""
        numbers, phases = uniforms(indices, 5, self.seed, 0), uniforms(indices, HARMONICS, self.seed, 6)
        time = torch.arange(self.of.length + 2 * FURTHEST) / self.of.sample_rate
        low, high = PITCH
        pitch = low * (high / low) ** numbers[:, 0, None] * (1 + 0.3 * (numbers[:, 1, None] - 0.5) * time / time[-1])
        turns = torch.cumsum(pitch / self.of.sample_rate, dim=1)
        order = torch.arange(1, HARMONICS + 1)[:, None]
        waves = (2 * torch.pi * (order * turns[:, None] + phases[..., None])).sin() / order
        swell = 1.2 + (2 * torch.pi * ((3 + 9 * numbers[:, 2, None]) * time + numbers[:, 3, None])).sin()
        return _of_unit_variance(waves.sum(1) * swell)

    def _noise(self, indices: Tensor) -> Tensor:
        """(B, samples + 2 FURTHEST) of variance one."""
        numbers = uniforms(indices, 2 * WAVES, self.seed, 1)
        low, high = BAND
        turns = (low + (high - low) * numbers[:, :WAVES, None]) * (
            torch.arange(self.of.length + 2 * FURTHEST) / self.of.sample_rate
        ) + numbers[:, WAVES:, None]
        return _of_unit_variance((2 * torch.pi * turns).sin().sum(1))


def _heard(sound: Tensor, delays: Tensor, of: MicrophonesDataModule) -> Tensor:
    """(B, samples + 2 FURTHEST) as microphones hear it, (B, mics, samples): the first in the middle, others ``delays``
    (B, mics) samples from one end."""
    delays = delays.index_fill(1, torch.tensor([0]), FURTHEST)
    places = delays[..., None] + torch.arange(of.length)
    return sound[:, None].expand(-1, of.mics, -1).gather(2, places)


def _of_unit_variance(sound: Tensor) -> Tensor:
    return sound / sound.square().mean(1, keepdim=True).sqrt()
