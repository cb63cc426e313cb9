"""Digits to be tuned to: another task than the one that the digits' models know, whole or as a stream of tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.layers.options import require_at_least
from zoo.train.data.digits import DigitsDataModule
from zoo.train.data.loader import Batch, BatchLoader, Source
from zoo.train.data.rng import derive_seed, uniforms

CLASSES = 10


class TurnedDigitsDataModule(DigitsDataModule):
    """Handwritten digits turned by a quarter and in negative: what a model of digits may be tuned to. Splits and
    arguments are those of `DigitsDataModule`.
    """

    preparation: dict[str, Any] = {"label_names": tuple("0123456789")}  # noqa: RUF012

    def build(self) -> dict[str, Source]:
        return {split: Turned(source) for split, source in super().build().items()}


class DigitStreamDataModule(TurnedDigitsDataModule):
    """Turned digits as a stream of tasks of some classes each, a task an epoch, as `ContinualClassification` learns it.

    Whatever came before, a task is `items` training samples: of the first one all are its own; later every second one
    is of an earlier task, of each of which the first `keep` digits are remembered. All are drawn with replacement, as
    often as there is room. Held-out splits have all classes.

    Args:
        tasks: how many, each of as many of the ten classes, in their order.
        items: training samples of a task.
        keep: digits of a task that are remembered; 0: later tasks see their own alone.
        others: see `DigitsDataModule`.
    """

    def __init__(
        self,
        *,
        tasks: int = 5,
        items: int = 1280,
        keep: int = 32,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        augment: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            augment=augment,
        )
        require_at_least(1, tasks=tasks, items=items)
        require_at_least(0, keep=keep)
        if CLASSES % tasks:
            raise ValueError(f"tasks must divide the {CLASSES} classes of digits, got {tasks}")
        self.tasks, self.items, self.keep = tasks, items, keep

    @property
    def sizes(self) -> tuple[int, ...]:
        """Classes of each task."""
        return (CLASSES // self.tasks,) * self.tasks

    def build(self) -> dict[str, Source]:
        sources = super().build()
        labels = sources["train"].fetch(torch.arange(len(sources["train"])), 0)[1]
        members = [(labels // self.sizes[0] == task).nonzero()[:, 0] for task in range(self.tasks)]
        return sources | {"train": Stream(sources["train"], members, self.items, self.keep, self.seed)}

    def train_dataloader(self) -> BatchLoader:
        """In order: what is drawn needs no shuffling, and own and earlier samples take turns in every batch."""
        return self._loader("train", self.batch_size, drop_last=True)


class Turned:
    """The images of a source turned by a quarter and negated."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        images, labels = self.source.fetch(indices, epoch)
        return -images.rot90(1, (2, 3)), labels


class Stream:
    """Samples of task e in epoch e, beside remembered ones of those before.

    Args:
        source: of all samples.
        members: of each task, their indices.
        items, keep: see `DigitStreamDataModule`.
        seed: of what is drawn.
    """

    def __init__(self, source: Source, members: list[Tensor], items: int, keep: int, seed: int) -> None:
        self.source, self.members, self.items, self.seed = source, members, items, seed
        draws = torch.Generator().manual_seed(derive_seed(seed, len(members)))
        self.remembered = [one[torch.randperm(len(one), generator=draws)[:keep]] for one in members]

    def __len__(self) -> int:
        return self.items

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        task = min(epoch, len(self.members) - 1)
        old = torch.cat([*self.remembered[:task], torch.empty(0, dtype=torch.int64)])
        u = uniforms(indices, 1, self.seed, epoch)[:, 0]
        chosen = self.members[task][(u * len(self.members[task])).long()]
        if len(old):
            chosen = torch.where(indices % 2 == 0, chosen, old[(u * len(old)).long()])
        return self.source.fetch(chosen, epoch)
