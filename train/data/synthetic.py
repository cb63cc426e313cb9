"""Generated tasks that tell sequence mixers apart: associative recall, selective copying and induction heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Batch, Source
from zoo.train.data.rng import derive_seed, distinct, integers, uniforms
from zoo.train.data.windows import IGNORED


class SyntheticTask(ABC):
    """A distribution over sequences with answers.

    `generate` gives `(tokens (B, T), labels (B, T))`, int64, with transformers' meaning of labels: a model predicts
    `labels[:, t + 1]` from `tokens[:, : t + 1]` and ignores -100. So an answer that the papers place beside its query,
    at position t, stands here at t + 1.

    Attributes:
        vocab_size: token ids are in [0, vocab_size).
        length: T.
    """

    vocab_size: int

    @property
    @abstractmethod
    def length(self) -> int: ...

    @property
    def demands(self) -> dict[str, Any]:
        """See `DataModule.demands`."""
        return {}

    @abstractmethod
    def generate(self, indices: Tensor, seed: int) -> Batch:
        """The samples numbered `indices` `(B,)` of the stream `seed`: each a function of (seed, its number) alone."""


@dataclass(frozen=True)
class MQAR(SyntheticTask):
    """Multi-query associative recall: key-value pairs first, then each key again, to be answered by its value.

    Keys are drawn without repetition from [1, vocab_size / 2), values from [vocab_size / 2, vocab_size). Pairs come
    `k v k v ...`, `num_passes` times over. The rest of the sequence has a query slot at every other position, the first
    right after the pairs; slot x (from 1) is taken with probability proportional to `power_a * x ** (power_a - 1)`, all
    slots different, so that short gaps are likelier. Other positions hold random tokens, or 0.

    With `MQAR(seq_len=16, vocab_size=20, num_kv_pairs=2, random_non_queries=False)`, where `.` is -100:

        position  0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
        tokens    2 18  4 17  0  0  4  0  0  0  0  0  2  0  0  0
        labels    .  .  .  .  .  .  . 17  .  .  .  .  . 18  .  .

    Paper: Arora et al., "Zoology", arXiv:2312.04927 (there: 100,000 training and 3,000 test sequences of 64 to 512
    tokens with 4 to 64 pairs, vocabulary 8192, the same in every epoch, and no random tokens in figure 2).
    """

    seq_len: int = 64
    vocab_size: int = 8192
    num_kv_pairs: int = 8
    power_a: float = 0.01
    num_passes: int = 1
    random_non_queries: bool = True

    def __post_init__(self) -> None:
        if min(self.num_kv_pairs, self.num_passes) < 1 or self.power_a <= 0:
            raise ValueError(
                "num_kv_pairs and num_passes must be >= 1 and power_a > 0, got "
                f"num_kv_pairs={self.num_kv_pairs}, num_passes={self.num_passes}, power_a={self.power_a}"
            )
        needed = 2 * self.num_kv_pairs * (self.num_passes + 1)
        if self.seq_len % 2 or self.seq_len < needed:
            raise ValueError(
                f"seq_len must be even and hold the pairs and as many query slots, at least {needed} tokens for "
                f"num_kv_pairs={self.num_kv_pairs} and num_passes={self.num_passes}, got {self.seq_len}"
            )
        if self.vocab_size <= self.seq_len:
            raise ValueError(f"vocab_size must be above seq_len, got {self.vocab_size} and {self.seq_len}")

    @property
    def length(self) -> int:
        return self.seq_len

    def generate(self, indices: Tensor, seed: int) -> Batch:
        half, pairs = self.vocab_size // 2, self.num_kv_pairs
        keys = distinct(indices, pairs, half - 1, seed, 0) + 1  # (B, pairs)
        values = distinct(indices, pairs, self.vocab_size - half, seed, 1) + half
        context = torch.stack([keys, values], dim=2).flatten(1).repeat(1, self.num_passes)  # (B, 2 * pairs * passes)
        slots = (self.seq_len - context.shape[1]) // 2
        log_weights = (self.power_a - 1) * torch.arange(1, slots + 1, dtype=torch.float64).log()
        # The largest values of log p + Gumbel noise, in order, are draws without replacement with odds p.
        gumbel = -(-uniforms(indices, slots, seed, 2).clamp(min=2.0**-53).log()).log()
        positions = context.shape[1] + 2 * (log_weights + gumbel).topk(pairs, dim=1).indices  # (B, pairs)

        tokens = torch.zeros(len(indices), self.seq_len, dtype=torch.int64)
        if self.random_non_queries:
            tokens = integers(indices, self.seq_len, self.vocab_size, seed, 3)
        tokens[:, : context.shape[1]] = context
        tokens.scatter_(1, positions, keys)
        labels = torch.full_like(tokens, IGNORED).scatter_(1, positions + 1, values)
        return tokens, labels


@dataclass(frozen=True)
class SelectiveCopying(SyntheticTask):
    """Reproduce, in order, the data tokens that are scattered over a long stretch of noise.

    `seq_len` positions hold noise (token 0) and, at `num_data` random places, data drawn from [1, vocab_size - 1). Then
    come markers (token vocab_size - 1); the first asks for the first data token, and so on. One more marker than data
    tokens ends the sequence, as the place of the last label: T = seq_len + num_data + 1. So, for 6 + 2:

        tokens    0  3  0  0  5  0  M  M  M
        labels    .  .  .  .  .  .  .  3  5

    Paper: Gu and Dao, "Mamba", arXiv:2312.00752, section 4.1 and appendix E.1 (these defaults; new data at every step).
    """

    seq_len: int = 4096
    vocab_size: int = 16
    num_data: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.num_data <= self.seq_len:
            raise ValueError(f"num_data must be in [1, seq_len], got num_data={self.num_data}, seq_len={self.seq_len}")
        if self.vocab_size < 3:
            raise ValueError(f"vocab_size must be >= 3 (noise, data, marker), got {self.vocab_size}")

    @property
    def length(self) -> int:
        return self.seq_len + self.num_data + 1

    def generate(self, indices: Tensor, seed: int) -> Batch:
        data = integers(indices, self.num_data, self.vocab_size - 2, seed, 0) + 1  # (B, num_data)
        places = distinct(indices, self.num_data, self.seq_len, seed, 1).sort(dim=1).values
        tokens = torch.zeros(len(indices), self.length, dtype=torch.int64)
        tokens[:, self.seq_len :] = self.vocab_size - 1
        tokens.scatter_(1, places, data)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, -self.num_data :] = data
        return tokens, labels


@dataclass(frozen=True)
class InductionHeads(SyntheticTask):
    """Recall, at the second sight of a special token, the token that followed the first.

    `seq_len` random tokens from [0, vocab_size - 1), with the special token, vocab_size - 1, at a random place and
    again at the end; the answer follows it and is the only label: T = seq_len + 1. With seq_len 7:

        tokens    3  1  S  4  0  2  S  4
        labels    .  .  .  .  .  .  .  4

    Paper: Gu and Dao, "Mamba", arXiv:2312.00752, section 4.1 and appendix E.1 (these defaults; new data at every
    step; tested at lengths from 64 to 1,048,576), after Dao et al., "H3", arXiv:2212.14052.
    """

    seq_len: int = 256
    vocab_size: int = 16

    def __post_init__(self) -> None:
        if self.seq_len < 3:
            raise ValueError(f"seq_len must be >= 3 (special, answer, special), got {self.seq_len}")
        if self.vocab_size < 3:
            raise ValueError(f"vocab_size must be >= 3 (two tokens and the special one), got {self.vocab_size}")

    @property
    def length(self) -> int:
        return self.seq_len + 1

    def generate(self, indices: Tensor, seed: int) -> Batch:
        special = self.vocab_size - 1
        tokens = integers(indices, self.length, special, seed, 0)
        place = integers(indices, 1, self.seq_len - 2, seed, 1)  # (B, 1): the answer at `place + 1` precedes the end
        tokens.scatter_(1, place, special)
        tokens[:, -2] = special
        tokens[:, -1:] = tokens.gather(1, place + 1)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, -1] = tokens[:, -1]
        return tokens, labels


class SyntheticDataModule(DataModule):
    """Batches of a generated task, made as they are asked for: no two splits share a stream of random numbers.

    Validation and test sequences are the same for every `seed`, so that runs are compared on the same ones.

    Args:
        task: an `MQAR`, `SelectiveCopying` or `InductionHeads`.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        train_samples, val_samples, test_samples: sequences per epoch and split.
        resample: draw new training sequences in every epoch; otherwise each epoch has the same ones in another order.
        curriculum: tasks of the first training epochs, one each, such as shorter ones; `task` is that of the others.
    """

    def __init__(
        self,
        task: SyntheticTask,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_samples: int = 100_000,
        val_samples: int = 1_000,
        test_samples: int = 3_000,
        resample: bool = True,
        curriculum: Sequence[SyntheticTask] = (),
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        for name, samples in (("train", train_samples), ("val", val_samples), ("test", test_samples)):
            if samples < 1:
                raise ValueError(f"{name}_samples must be >= 1, got {samples}")
        self.task = task
        self.train_samples, self.val_samples, self.test_samples = train_samples, val_samples, test_samples
        self.resample = resample
        self.curriculum = tuple(curriculum)
        known = getattr(task, "vocab_size", None)  # None of a series
        if other := {getattr(earlier, "vocab_size", None) for earlier in self.curriculum} - {known}:
            raise ValueError(f"curriculum must have the task's vocab_size, {known}, got {list(other)}")

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size

    @property
    def demands(self) -> dict[str, Any]:
        return self.task.demands

    def build(self) -> dict[str, Source]:
        return {
            "train": GeneratedSamples(
                self.task, self.train_samples, derive_seed(0, self.seed), self.resample, self.curriculum
            ),
            "val": GeneratedSamples(self.task, self.val_samples, derive_seed(1)),
            "test": GeneratedSamples(self.task, self.test_samples, derive_seed(2)),
        }


class GeneratedSamples:
    """`samples` sequences of a task, or as many new ones each epoch; the first epochs may have tasks of their own."""

    def __init__(
        self,
        task: SyntheticTask,
        samples: int,
        seed: int,
        resample: bool = False,
        first: Sequence[SyntheticTask] = (),
    ) -> None:
        self.task, self.samples, self.seed, self.resample, self.first = task, samples, seed, resample, first

    def __len__(self) -> int:
        return self.samples

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        task = self.first[epoch] if epoch < len(self.first) else self.task
        return task.generate(indices + epoch * self.samples if self.resample else indices, self.seed)
