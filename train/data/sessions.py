"""Generated contexts on which several questions are asked, one turn after the other, and mixtures of tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.train.data.loader import Batch
from zoo.train.data.rng import distinct, integers, uniforms
from zoo.train.data.synthetic import SyntheticTask
from zoo.train.data.windows import IGNORED

MARKER = 0


@dataclass(frozen=True)
class Session(SyntheticTask):
    """One context, and `turns` questions on it, each with its answer behind it.

    Token 0 begins a turn. Names are drawn from [1, vocab_size / 2), values from [vocab_size / 2, vocab_size), as in
    `MQAR`. A turn is 0, a question and tokens of which those that `answered` says are labels; as in SCBench's turns,
    the right answers stand in the text. What the sequence has more than its statements fill is 0, at its beginning.

    Attributes:
        answered: of each token of a turn behind the marker, whether it is an answer.

    Paper: Li et al., "SCBench", arXiv:2412.10319: several turns on one context, so that what a cache has thrown away
    for the first question is missed by the second.

    Raises:
        ValueError: for sizes out of range.
    """

    seq_len: int = 128
    vocab_size: int = 128
    turns: int = 4

    def __post_init__(self) -> None:
        if self.turns < 1 or self.vocab_size < 4:
            raise ValueError(
                f"turns must be >= 1 and vocab_size >= 4, got turns={self.turns}, vocab_size={self.vocab_size}"
            )
        if self.context < 3:
            raise ValueError(f"{self.turns} turns of {self.turn} tokens leave no context in seq_len={self.seq_len}")
        if self.turns > self.statements or self.names > self.vocab_size // 2 - 1:
            raise ValueError(
                f"a context of {self.context} tokens holds {self.statements} statements with {self.names} names: "
                f"turns must be at most that, and the names of vocab_size, vocab_size / 2 - 1, at least that; got "
                f"turns={self.turns}, vocab_size={self.vocab_size}"
            )

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def turn(self) -> int:
        """Tokens of a turn, with its marker."""
        return 1 + len(self.answered)

    @property
    def context(self) -> int:
        """Tokens before the first turn."""
        return self.seq_len - self.turns * self.turn

    @property
    @abstractmethod
    def answered(self) -> tuple[bool, ...]: ...

    @property
    @abstractmethod
    def statements(self) -> int:
        """What can be asked for, each in one turn."""

    @property
    @abstractmethod
    def names(self) -> int:
        """How many different ones the context has."""

    @abstractmethod
    def draw(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The contexts (B, up to `context`), and the turns (B, `turns`, n) behind their markers."""

    def generate(self, indices: Tensor, seed: int) -> Batch:
        context, turns = self.draw(indices, seed)
        tokens = torch.cat([context, F.pad(turns, (1, 0), value=MARKER).flatten(1)], 1)
        tokens = F.pad(tokens, (self.seq_len - tokens.shape[1], 0), value=MARKER)
        labels = tokens.clone()
        labels[:, : self.context] = IGNORED
        labels[:, self.context :].unflatten(1, (self.turns, -1))[..., ~torch.tensor([False, *self.answered])] = IGNORED
        return tokens, labels

    def asked(self, indices: Tensor, seed: int, things: Tensor) -> Tensor:
        """Of things (B, statements, n) the ones that are asked for, all different: (B, `turns`, n)."""
        which = distinct(indices, self.turns, self.statements, seed, 0)
        return things.take_along_dim(which[..., None], 1)

    def values(self, indices: Tensor, seed: int, count: int) -> Tensor:
        """(B, `count`), perhaps the same ones."""
        half = self.vocab_size // 2
        return integers(indices, count, self.vocab_size - half, seed, 1) + half


@dataclass(frozen=True)
class Passkeys(Session):
    """Needles in a haystack: `needles` passkeys of `digits` values, each behind its name, between names of nothing.

    Names and values of the passkeys occur once. With `digits` 2 and `turns` 1, a turn is `0 12 90 71`:

        tokens    7 12 90 71 30  3 ...  0 12 90 71
        labels    .  .  .  .  .  . ...  .  . 90 71

    Paper: Mohtashami and Jaggi, "Landmark Attention", arXiv:2305.16300, whose passkey is one of five digits.
    """

    needles: int = 4
    digits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        free = self.context - self.needles * (self.digits + 1)
        if free < 0 or self.needles * self.digits > self.vocab_size - self.vocab_size // 2:
            raise ValueError(
                f"the context of {self.context} tokens and the values of vocab_size={self.vocab_size} must hold "
                f"needles={self.needles} of digits={self.digits}, none of them twice"
            )

    @property
    def answered(self) -> tuple[bool, ...]:
        return (False, *[True] * self.digits)

    @property
    def statements(self) -> int:
        return self.needles

    @property
    def names(self) -> int:
        return self.needles + 1  # and at least one that means nothing

    def draw(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        half, size = self.vocab_size // 2, self.digits + 1
        names = distinct(indices, half - 1, half - 1, seed, 2) + 1
        noise = self.needles + integers(indices, self.context, half - 1 - self.needles, seed, 3)
        context = names.gather(1, noise)
        digits = distinct(indices, self.needles * self.digits, self.vocab_size - half, seed, 1) + half
        needles = torch.cat([names[:, : self.needles, None], digits.unflatten(1, (self.needles, -1))], 2)
        free = self.context - self.needles * size
        starts = integers(indices, self.needles, free + 1, seed, 4).sort(1).values + size * torch.arange(self.needles)
        places = starts[..., None] + torch.arange(size)
        return context.scatter(1, places.flatten(1), needles.flatten(1)), self.asked(indices, seed, needles)


@dataclass(frozen=True)
class KeyValues(Session):
    """Names with their values, as many pairs as there is room for; a turn asks for `queries` of them.

    With `queries` 1, a turn is `0 12 90`; with 2, one of several queries, `0 12 90 7 71`:

        tokens    7 71 12 90 30 65 ...  0 12 90  7 71
        labels    .  .  .  .  .  . ...  .  . 90  . 71
    """

    queries: int = 1

    @property
    def answered(self) -> tuple[bool, ...]:
        return (False, True) * self.queries

    @property
    def statements(self) -> int:
        return self.names // max(1, self.queries)

    @property
    def names(self) -> int:
        return self.context // 2

    def draw(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        names = distinct(indices, self.names, self.vocab_size // 2 - 1, seed, 2) + 1
        pairs = torch.stack([names, self.values(indices, seed, self.names)], 2)  # (B, pairs, 2)
        groups = pairs[:, : self.statements * self.queries].unflatten(1, (self.statements, -1)).flatten(2)
        order = distinct(indices, self.names, self.names, seed, 3)  # so that the queries of a turn lie apart
        return pairs.take_along_dim(order[..., None], 1).flatten(1), self.asked(indices, seed, groups)


@dataclass(frozen=True)
class VariableTracking(Session):
    """Names that stand for other names, and at last for a value: `hops` statements `name what 0` lead to it.

    The statements of all chains are mixed, a name is told before it is used. A turn begins with the last name of a
    chain, and its answer is the way to the value. With `hops` 2:

        tokens    5 90 0  9 71 0  12 5 0 ...  0 12  5 90
        labels    .  . .  .  . .   . . . ...  .  .  5 90

    Paper: Hsieh et al., "RULER", arXiv:2404.06654, whose answer is the set of names; in SCBench as "vt".
    """

    hops: int = 2

    @property
    def answered(self) -> tuple[bool, ...]:
        return (False, *[True] * self.hops)

    @property
    def statements(self) -> int:
        return self.context // (3 * self.hops)

    @property
    def names(self) -> int:
        return self.statements * self.hops

    def draw(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        names = distinct(indices, self.names, self.vocab_size // 2 - 1, seed, 2).unflatten(1, (-1, self.hops)) + 1
        value = self.values(indices, seed, self.statements)[..., None]
        chains = torch.cat([value, names], 2)  # (B, statements, 1 + hops), from the value on
        told = torch.stack([chains[..., 1:], chains[..., :-1], torch.zeros_like(names)], 3)
        places = uniforms(indices, self.names, seed, 3).argsort(1).unflatten(1, (-1, self.hops)).sort(2).values
        order = places.flatten(1).argsort(1)
        return told.flatten(1, 2).take_along_dim(order[..., None], 1).flatten(1), self.asked(
            indices, seed, chains.flip(2)
        )


@dataclass(frozen=True)
class Mixture(SyntheticTask):
    """Sequences of several tasks in turn, over one vocabulary; the shorter ones end with token 0, without labels.

    Args:
        tasks: sample i is of task i modulo their number.

    Raises:
        ValueError: for no task, or tasks with vocabularies of other sizes.
    """

    tasks: Sequence[SyntheticTask] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if len(sizes := {task.vocab_size for task in self.tasks}) != 1:
            raise ValueError(f"tasks must be some with one vocab_size, got {len(self.tasks)} with {sorted(sizes)}")

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self.tasks[0].vocab_size

    @property
    def length(self) -> int:
        return max(task.length for task in self.tasks)

    def generate(self, indices: Tensor, seed: int) -> Batch:
        tokens = torch.zeros(len(indices), self.length, dtype=torch.int64)
        labels = torch.full_like(tokens, IGNORED)
        for number, task in enumerate(self.tasks):
            rows = (indices % len(self.tasks) == number).nonzero()[:, 0]
            if len(rows):
                own = task.generate(indices[rows] // len(self.tasks), seed + number)
                for whole, part in zip((tokens, labels), own, strict=True):
                    whole[rows, : task.length] = part
        return tokens, labels
