"""Steps in an environment of Gymnasium, in sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.layers.options import require_at_least
from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed
from zoo.worlds import Environment, Played, Player, at_random, play

ACTION, REWARD, END, FIRST = range(4)  # of a step


class EnvironmentDataModule(DataModule):
    """Sequences `(frames (B, T, C, H, W), moves (B, T, 4))`, float32, of an environment that is played at random.

    Frames are in [0, 1]; moves are the action at the frame, its reward, whether the episode ended with it, and whether
    the frame is the first of an episode. `zoo.train.tasks.WorldModeling` begins with the steps to train on, and plays.

    Args:
        environment: Gymnasium's name; see `zoo.worlds.Environment`, also for `img_size`, `in_chans`, `repeat` and
            `options`.
        length: T.
        steps: of random play to train on.
        held_out: of others, twice, for validation and for the test.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.

    Raises:
        ValueError: for fewer steps than a sequence takes, and what `zoo.worlds.Environment` raises.
    """

    def __init__(
        self,
        environment: str = "CartPole-v1",
        *,
        img_size: int = 32,
        in_chans: int = 1,
        repeat: int = 1,
        options: dict[str, Any] | None = None,
        length: int = 32,
        steps: int = 500,
        held_out: int = 500,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        require_at_least(1, length=length)
        require_at_least(length, steps=steps, held_out=held_out)
        self.environment, self.img_size, self.in_chans, self.repeat = environment, img_size, in_chans, repeat
        self.options, self.length = options, length
        self.steps = {"train": steps, "val": held_out, "test": held_out}
        self._actions: int | None = None

    def make(self) -> Environment:
        """The environment, anew."""
        return Environment(self.environment, self.img_size, self.in_chans, repeat=self.repeat, options=self.options)

    @property
    def num_actions(self) -> int:
        """Of the environment."""
        if self._actions is None:
            self._actions = self.make().num_actions
        return self._actions

    @property
    def demands(self) -> dict[str, Any]:
        return {"num_actions": self.num_actions, "in_chans": self.in_chans, "img_size": self.img_size}

    @property
    def preparation(self) -> dict[str, Any]:
        return {"environment": self.environment, "repeat": self.repeat}

    def build(self) -> dict[str, Source]:
        seeds = {"train": derive_seed(0, self.seed), "val": derive_seed(1), "test": derive_seed(2)}
        return {split: Sequences(self.played(self.steps[split], seed), self.length) for split, seed in seeds.items()}

    def played(self, steps: int, seed: int) -> Played:
        """Steps in a row at random."""
        return play(Player(self.make(), seed), steps, at_random(self.num_actions, seed))


class Sequences:
    """Every sequence of a length in steps that were played."""

    def __init__(self, played: Played, length: int) -> None:
        self.played, self.length = played, length

    def __len__(self) -> int:
        return len(self.played.actions) + 1 - self.length

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        places = indices[:, None] + torch.arange(self.length)
        return joined(Played(*(part[places] for part in self.played)))


def joined(played: Played) -> tuple[Tensor, Tensor]:
    """Bytes and the rest, (..., T, C, H, W) and (..., T), as frames and moves."""
    return played.frames.float() / 255, torch.stack([part.float() for part in played[1:]], -1)
