"""Generated traffic: who comes from the right, and who is near."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, integers, uniforms

RADIUS = 3.0  # within which an agent is near


class ScenesDataModule(DataModule):
    """Scenes `(B, agents, 4)` float32 of x and y in [0, 10), heading in (-pi, pi] and speed in [-1, 1), and targets
    `(B, agents, 2)` float32.

    The headings of a scene lie within `spread` degrees of one direction: 0 in training and validation scenes, `turn`
    degrees in test scenes. At 180, headings on both sides of it are 2 pi apart in number. In test scenes each heading
    also has up to `windings` full turns more or less, as where it was summed up from turning rates. Asked of an agent
    are

    - the speed of the one that comes from its right, whose heading is the nearest to a quarter turn to the left of its
      own: that with the largest sin(heading - its own), which is itself where none comes from there;
    - the mean speed of all within 3 of its place, itself among them.

    Args:
        agents: in a scene.
        spread, turn: degrees.
        windings: full turns.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: scenes per epoch and split. Training scenes are drawn anew each epoch;
            the others are the same for every seed.

    Raises:
        ValueError: a number of agents or scenes below 1, or a spread out of (0, 180].
    """

    def __init__(
        self,
        *,
        agents: int = 6,
        spread: float = 90.0,
        turn: float = 180.0,
        windings: int = 0,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 50_000,
        val_samples: int = 1_000,
        test_samples: int = 2_000,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if min(agents, train_samples, val_samples, test_samples) < 1 or not 0 < spread <= 180 or windings < 0:
            raise ValueError(
                f"agents and samples must be >= 1, spread in (0, 180] and windings >= 0, got agents={agents}, "
                f"spread={spread}, windings={windings}, train_samples={train_samples}, val_samples={val_samples}, "
                f"test_samples={test_samples}"
            )
        self.agents, self.spread, self.turn, self.windings = agents, spread, turn, windings
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}

    @property
    def demands(self) -> dict[str, Any]:
        return {"in_features": 4, "out_features": 2}

    def build(self) -> dict[str, Source]:
        return {
            "train": Scenes(self, self.samples["train"], derive_seed(0, self.seed), resample=True),
            "val": Scenes(self, self.samples["val"], derive_seed(1)),
            "test": Scenes(self, self.samples["test"], derive_seed(2), self.turn, self.windings),
        }


class Scenes:
    """`samples` scenes, or as many new ones each epoch: functions of (seed, number) alone."""

    def __init__(
        self,
        of: ScenesDataModule,
        samples: int,
        seed: int,
        turn: float = 0.0,
        windings: int = 0,
        resample: bool = False,
    ) -> None:
        self.agents, self.spread, self.samples, self.seed = of.agents, of.spread, samples, seed
        self.turn, self.windings, self.resample = turn, windings, resample

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        indices = indices + epoch * self.samples if self.resample else indices
        numbers = uniforms(indices, 4 * self.agents, self.seed).view(-1, self.agents, 4)
        places, speeds = 10 * numbers[..., :2], 2 * numbers[..., 3] - 1
        degrees = self.turn + self.spread * (2 * numbers[..., 2] - 1)
        degrees = 180 - torch.remainder(180 - degrees, 360)  # in (-180, 180]
        turns = integers(indices, self.agents, 2 * self.windings + 1, self.seed, 1) - self.windings
        headings = torch.deg2rad(degrees + 360 * turns)
        scenes = torch.cat([places, headings[..., None], speeds[..., None]], dim=-1)
        return scenes.float(), answers(places, headings, speeds).float()


def answers(places: Tensor, headings: Tensor, speeds: Tensor) -> Tensor:
    """Of scenes (B, N, 2), (B, N) and (B, N) the targets (B, N, 2)."""
    from_right = (headings[:, None, :] - headings[:, :, None]).sin().argmax(-1)  # (B, N), over the others
    near = (torch.cdist(places, places) < RADIUS).to(speeds)  # (B, N, N)
    return torch.stack([speeds.gather(1, from_right), (near @ speeds[..., None])[..., 0] / near.sum(-1)], dim=-1)
