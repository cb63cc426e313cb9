"""Spoken digits as a cochlea might send them, generated: spikes over channels and time, two to be added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.train.data.loader import Batch
from zoo.train.data.rng import integers, uniforms
from zoo.train.data.synthetic import SyntheticTask

DIGITS = 10
RIDGES, WIDTH = 3, 1.2  # of a digit: bands of activity, and how wide one is, in channels
LOUD, NOISE = 0.7, 0.02  # probability of a spike in a bin: in the middle of a band, and anywhere
SHIFTS = 2.0, 1.0  # of a digit as it is spoken: up to so many bins, and channels
SPEAKER = 20230622  # seed of the digits' bands, which are always the same


@dataclass(frozen=True)
class SpikeSums(SyntheticTask):
    """The sum of two digits, one spoken after the other; classes 0 to 18.

    A digit is three bands of activity, each of which begins in a channel of its own, moves to another and is loud for a
    part of the time; spoken, it is shifted in time and pitch, and its spikes are drawn anew, with others that mean
    nothing. `generate` gives `(spikes (B, 2 bins, channels) float32, sums (B,) int64)`, a spike being 1.

    The commonest sum, 9, is a tenth of all, and who knows one digit only guesses right one time in ten too.

    Paper: Spieler et al., "The Expressive Leaky Memory Neuron", arXiv:2306.16922, whose SHD-Adding concatenates two of
    the Spiking Heidelberg Digits (Cramer et al., 2020), 700 channels in 100 bins of 10 ms each; these are generated.

    Raises:
        ValueError: for a size out of range.
    """

    channels: int = 32
    bins: int = 25

    def __post_init__(self) -> None:
        if self.channels < 8 or self.bins < 8:
            raise ValueError(f"channels and bins must be >= 8, got channels={self.channels}, bins={self.bins}")

    @property
    def length(self) -> int:
        return 2 * self.bins

    @property
    def demands(self) -> dict[str, Any]:
        return {"in_features": self.channels, "num_classes": 2 * DIGITS - 1}

    def generate(self, indices: Tensor, seed: int) -> Batch:
        digits = integers(indices, 2, DIGITS, seed, 0)  # (B, 2)
        shifts = (2 * uniforms(indices, 4, seed, 1) - 1).view(-1, 2, 2) * torch.tensor(SHIFTS)  # (B, 2, time and pitch)
        rate = self._rates(digits, shifts).flatten(1, 2)  # (B, 2 bins, channels)
        drawn = uniforms(indices, rate[0].numel(), seed, 2).view_as(rate)
        return (drawn < rate).float(), digits.sum(1)

    def _rates(self, digits: Tensor, shifts: Tensor) -> Tensor:
        """Probabilities of a spike (B, 2, bins, channels), of the digits (B, 2) so shifted."""
        bands = uniforms(torch.arange(DIGITS), 4 * RIDGES, SPEAKER).view(DIGITS, 1, 4, RIDGES)
        first, last, begin, lasts = bands[digits].unbind(3)  # (B, 2, 1, RIDGES)
        begin, end = 0.5 * begin, 0.5 * begin + 0.3 + 0.3 * lasts
        bins = torch.arange(self.bins, dtype=torch.float64)
        time = (bins - shifts[..., :1])[..., None] / self.bins  # (B, 2, bins, 1)
        centre = (first + (last - first) * time) * (self.channels - 1) + shifts[..., 1:, None]  # (B, 2, bins, RIDGES)
        on = (time >= begin) & (time <= end)
        distance = torch.arange(self.channels) - centre[..., None]  # (B, 2, bins, RIDGES, channels)
        loud = LOUD * on[..., None] * torch.exp(-0.5 * (distance / WIDTH) ** 2)
        return NOISE + (1 - NOISE) * loud.amax(3)
