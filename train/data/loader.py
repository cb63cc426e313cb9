"""A batch loader whose every batch is a function of (seed, epoch, step), and which resumes in mid-epoch exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.train.data.rng import derive_seed

Batch = tuple[Tensor, Any]  # inputs and targets
T = TypeVar("T")


class Source(Protocol):
    """What a `BatchLoader` reads: a number of samples, and any set of them as one batch.

    `fetch(indices, epoch)` takes `(B,)` int64 indices and returns (inputs, targets) with leading dimension B. Its
    randomness, if any, must depend on (its own seed, epoch, index) alone (see `zoo.train.data.rng`).
    """

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor, epoch: int) -> Batch: ...


class BatchLoader:
    """Batches of a `Source`: deterministic, sharded over processes, and resumable at any batch.

    The order of epoch e is a permutation drawn from (seed, e) alone. It is cut into global batches of
    `batch_size * world_size` samples, and rank r takes the r-th of the `world_size` equal parts of each: 2 processes
    with `batch_size=b/2` see, step by step, the batches of 1 process with `batch_size=b`.

    With `drop_last` (training) each batch has exactly `batch_size` samples and the epoch's remainder is left out.
    Without it (evaluation) every sample comes exactly once; to give every rank the same number of steps, and none an
    empty one, batches are of even size, at most `batch_size` (100 samples by 64 are 50 + 50, not 64 + 36).

    Under Lightning: pass it to `Trainer.fit` or return it from a data module. It is no `torch.utils.data.DataLoader`,
    so Lightning puts no distributed sampler into it: `use_distributed_sampler=False` is unnecessary, and harmless.
    Lightning calls `loader.sampler.set_epoch(epoch)` before each epoch and keeps `state_dict()` in its checkpoints.
    What is saved is the number of batches handed out, never of those that workers prefetched; a checkpoint written
    inside a training step counts that step's batch.

    Outside Lightning: iterate; each finished pass moves on to the next epoch, a pass that was broken off starts again.
    One pass at a time: iterators of one loader share its position.

    Args:
        source: what to read.
        batch_size: samples per batch of this process.
        seed: of the order. Every process must be given the same one.
        shuffle: a new permutation each epoch; otherwise the source's own order.
        drop_last: see above.
        repeats: how often a sample comes in an epoch of the same length, side by side, each time under another index:
            copy c of sample i of N is i + c N. An epoch then sees a part of the samples.
        num_workers: processes that prepare batches ahead; 0 prepares each when it is asked for. Changes no batch.
        pin_memory: copy batches to page-locked memory.
        rank, world_size: this process among those that share the data; read from `torch.distributed` when left out.

    Raises:
        ValueError: a size out of range, or too few samples to give every process one in each step.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        repeats: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        found_rank, found_world_size = _distributed()
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.shuffle, self.drop_last, self.repeats = shuffle, drop_last, repeats
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.rank = found_rank if rank is None else rank
        self.world_size = found_world_size if world_size is None else world_size
        self.epoch = 0
        self.position = 0  # batches of this epoch handed out so far
        self._start = 0  # where the next pass begins: 0 unless load_state_dict says otherwise
        self._check()

    def _check(self) -> None:
        if min(self.batch_size, self.repeats) < 1 or self.num_workers < 0:
            raise ValueError(
                f"batch_size must be >= 1, repeats >= 1 and num_workers >= 0, got batch_size={self.batch_size}, "
                f"repeats={self.repeats}, num_workers={self.num_workers}"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank={self.rank}, world_size={self.world_size}")
        samples, whole = len(self.source), self.batch_size * self.world_size
        if self.drop_last and samples < whole:
            raise ValueError(
                f"a training epoch needs at least one whole batch of {whole} samples (batch_size {self.batch_size} x "
                f"{self.world_size} processes), got {samples}: choose a smaller batch_size or give more data"
            )
        if not samples or (not self.drop_last and samples < len(self) * self.world_size):
            raise ValueError(
                f"{samples} samples cannot give each of {self.world_size} processes one in each of {len(self)} steps "
                f"(batch_size {self.batch_size}): choose batch_size >= 2, fewer processes, or give more data"
            )

    def __len__(self) -> int:
        whole = self.batch_size * self.world_size
        return len(self.source) // whole if self.drop_last else -(-len(self.source) // whole)

    def plan(self, epoch: int, start: int = 0) -> Iterator[tuple[int, list[int]]]:
        """(epoch, this rank's sample indices) for each step of an epoch, from step `start` on."""
        samples, shards = len(self.source), len(self) * self.world_size
        order = torch.arange(samples)
        if self.shuffle:
            order = torch.randperm(samples, generator=torch.Generator().manual_seed(derive_seed(self.seed, epoch)))
        if self.repeats > 1:
            order = (order[:, None] + samples * torch.arange(self.repeats)).flatten()[:samples]
        kept = self.batch_size * shards if self.drop_last else samples
        for shard in range(start * self.world_size + self.rank, shards, self.world_size):
            yield epoch, order[shard * kept // shards : (shard + 1) * kept // shards].tolist()

    def __iter__(self) -> Iterator[Batch]:
        # Runs on the first `next`: by then Lightning, which calls `iter` early, has restored the state and the epoch.
        self.position, self._start = self._start, 0
        batches = DataLoader(
            _Batches(self.source),
            batch_size=None,  # an item is already a batch
            sampler=self.plan(self.epoch, self.position),
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(0),  # else it would draw from the global one, which is the model's
        )
        for batch in batches:
            self.position += 1
            yield batch
        self.set_epoch(self.epoch + 1)

    batch_sampler = None

    @property
    def sampler(self) -> BatchLoader:
        """Itself, beside no `batch_sampler`: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; where that is the current epoch, stay at the current batch."""
        if epoch != self.epoch:
            self.epoch, self.position, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self.epoch, "position": self.position, "steps": len(self), **self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: it was taken in mid-epoch of another order (other data, seed or global batch size).
        """
        epoch, position = state_dict["epoch"], state_dict["position"]
        if position >= state_dict["steps"]:
            epoch, position = epoch + 1, 0
        saved = {name: state_dict.get(name, 1) for name in self._order()}  # what repeats nothing does not say so
        if position and saved != self._order():
            raise ValueError(
                "a run can be resumed in mid-epoch only with the same data, seed and global batch size, "
                f"saved {saved}, got {self._order()}: restore them, or resume from the end of an epoch"
            )
        self.epoch = epoch
        self.position = self._start = position

    def _order(self) -> dict[str, Any]:
        return {
            "samples": len(self.source),
            "global_batch_size": self.batch_size * self.world_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "repeats": self.repeats,
        }


class _Batches(Dataset):
    """A source as a torch dataset whose keys are the steps of a plan."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, step: tuple[int, list[int]]) -> Batch:
        epoch, indices = step
        return self.source.fetch(torch.tensor(indices), epoch)


def _as_it_is(batch: T) -> T:
    return batch


def _distributed() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
