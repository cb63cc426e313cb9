"""Many small tasks, whose items come with solved ones looked up in a bank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.layers.options import require_at_least
from zoo.train.data.loader import Batch
from zoo.train.data.rng import derive_seed, distinct, integers, uniforms
from zoo.train.data.synthetic import SyntheticTask
from zoo.train.data.windows import IGNORED
from zoo.train.retrieval import bags, nearest


@dataclass(frozen=True)
class Demonstrations(SyntheticTask):
    """An item of one of many tasks after `shots` solved ones, which are found in a bank of all tasks' by their words.

    A task is three topic words and a table that gives each of `contents` words an answer. An item is the topic words in
    some order, a content word and the answer: `t2 t0 t1 c -> a`. The bank has each content of each task twice, in
    orders of their own; an item never finds itself. Training asks for items of the bank's first tasks, other splits
    (streams of another seed) for items of `unseen` tasks, whose solved items are in the bank as well, and whose tables
    no training has asked for. Only the last answer is a label.

        tokens   [t t t c a] [t t t c a] ... t t t c a        labels   ... a

    Args:
        shots: solved items before each one; 0 for none.
        retrieval: "nearest", by the words that they share; "random", any of the bank.
        tasks: that training asks for. unseen: others.
        topics, contents, answers: words of each kind.

    Raises:
        ValueError: for numbers out of range, or an unknown kind of retrieval.
    """

    shots: int = 4
    retrieval: Literal["nearest", "random"] = "nearest"
    tasks: int = 256
    unseen: int = 64
    topics: int = 24
    contents: int = 8
    answers: int = 16

    def __post_init__(self) -> None:
        require_at_least(0, shots=self.shots)
        require_at_least(1, tasks=self.tasks, unseen=self.unseen, contents=self.contents)
        require_at_least(2, answers=self.answers)
        require_at_least(3, topics=self.topics)
        if self.retrieval not in ("nearest", "random"):
            raise ValueError(f"retrieval must be 'nearest' or 'random', got {self.retrieval!r}")

    @property
    def vocab_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.topics + self.contents + self.answers

    @property
    def length(self) -> int:
        return 5 * (self.shots + 1)

    @property
    def demands(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size}

    @cached_property
    def bank(self) -> Tensor:
        """All solved items (N, 5): of each task each content twice."""
        count = self.tasks + self.unseen
        tasks = torch.arange(count)
        topics, tables = distinct(tasks, 3, self.topics, 0), integers(tasks, self.contents, self.answers, 1)
        number = torch.arange(2 * self.contents * count)
        task, content = number // (2 * self.contents), number % self.contents
        order = uniforms(number, 3, 2).argsort(1)
        words = topics[task].gather(1, order)
        solved = tables[task, content]
        return torch.cat([words, (self.topics + content)[:, None], (self.topics + self.contents + solved)[:, None]], 1)

    @cached_property
    def keys(self) -> Tensor:
        """What the bank's items are found by."""
        return bags(self.bank[:, :4], self.vocab_size)

    def generate(self, indices: Tensor, seed: int) -> Batch:
        split = 2 * self.contents * self.tasks
        held_out = seed in (derive_seed(1), derive_seed(2))  # SyntheticDataModule's streams
        size = len(self.bank) - split if held_out else split
        asked = integers(indices, 1, size, seed, 0)[:, 0] + (split if held_out else 0)
        rows = self.bank[asked]
        if self.shots:
            rows = torch.cat([self.bank[self.found(asked, indices, seed)].flatten(1), rows], 1)
        labels = torch.full_like(rows, IGNORED)
        labels[:, -1] = rows[:, -1]
        return rows, labels

    def found(self, asked: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Solved items (B, shots) for items of the bank; the nearest one stands last."""
        if self.retrieval == "nearest":
            return nearest(self.keys[asked], self.keys, self.shots, asked)[0].flip(1)
        drawn = integers(indices, self.shots, len(self.bank) - 1, seed, 1)
        return drawn + (drawn >= asked[:, None])
