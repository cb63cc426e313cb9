"""What all data modules share: sources by split, and loaders made from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning import LightningDataModule

from zoo.train.data.loader import BatchLoader, Source


class DataModule(LightningDataModule, ABC):
    """A LightningDataModule made of `Source`s.

    A subclass says in `build()` which sources there are ("train", "val", "test"); they are made once, at `setup`.
    Training batches are shuffled by (seed, epoch) and all of one size; evaluation reads every sample once. See
    `BatchLoader` for what holds over resumed runs, workers and processes.

    Args:
        batch_size: training samples per step and process.
        eval_batch_size: validation and test samples per step and process; `batch_size` when left out.
        num_workers: processes that prepare batches ahead.
        seed: of the training order, augmentation and generated samples; splits never depend on it.

    Raises:
        ValueError: a size out of range.
    """

    def __init__(self, *, batch_size: int, eval_batch_size: int | None, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        if min(self.batch_size, self.eval_batch_size) < 1 or num_workers < 0:
            raise ValueError(
                f"batch_size and eval_batch_size must be >= 1 and num_workers >= 0, got batch_size={batch_size}, "
                f"eval_batch_size={self.eval_batch_size}, num_workers={num_workers}"
            )
        self.num_workers = num_workers
        self.seed = seed
        self.sources: dict[str, Source] = {}

    @property
    def preparation(self) -> dict[str, Any]:
        """What is done to an input before the model sees it, as fields of the model's configuration."""
        return {}

    @property
    def demands(self) -> dict[str, Any]:
        """What a model of these data must be, as fields of its configuration, such as `num_classes`."""
        return {}

    def follow(self, pretrained_cfg: dict[str, Any]) -> None:
        """Prepare inputs as a model wants them, where that is not given."""

    @abstractmethod
    def build(self) -> dict[str, Source]:
        """The sources by split. "val" and "test" may be missing; "train" may not."""

    def setup(self, stage: str | None = None) -> None:
        if not self.sources:
            self.sources = self.build()

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", self.batch_size, shuffle=not self._overfits(), drop_last=True)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The validation loader, or no loader where the module was told to hold out none."""
        self.setup()
        return self._loader("val", self.eval_batch_size) if "val" in self.sources else []

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> BatchLoader:
        """What is held out for tests; outputs come in its order."""
        return self.test_dataloader()

    def __str__(self) -> str:
        sizes = ", ".join(f"{split}={len(source)}" for split, source in self.sources.items())
        return f"{type(self).__name__}({sizes or 'not set up'})"

    repeats = 1  # of a training sample in an epoch, see BatchLoader

    def _loader(self, split: str, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> BatchLoader:
        self.setup()
        if split not in self.sources:
            raise ValueError(f"{type(self).__name__} holds out no {split} data, it has {', '.join(self.sources)}")
        rank, world_size = self._process()
        return BatchLoader(
            self.sources[split],
            batch_size,
            seed=self.seed,
            shuffle=shuffle,
            drop_last=drop_last,
            repeats=self.repeats if split == "train" else 1,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            rank=rank,
            world_size=world_size,
        )

    def _process(self) -> tuple[int | None, int | None]:
        """This process among those that share the data: fewer than all where a strategy splits a model over several."""
        strategy = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (strategy["rank"], strategy["num_replicas"]) if strategy else (None, None)

    def _overfits(self) -> bool:
        return self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0
