"""How a model reads a prompt, and what comes after it token by token, by the options of ``zoo.generate``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.decoding.tim import Row
from zoo.generate.decode import prefilled
from zoo.generate.logits import last
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.layers.attention.state import KeyValueState
from zoo.layers.cache.state import CacheState
from zoo.layers.states import parts
from zoo.train.data.sessions import MARKER


class Reader:
    """Has read prompts (B, T), as ``zoo.generate`` reads them.

    Attributes:
        logits: (B, vocab_size), of what comes next.
    """

    def __init__(self, model: Any, options: Options, prompts: Tensor):
        batch = Batch(prompts)
        if options.compress is not None:
            batch = options.compress.shorten(batch)
        self.model, self.rows = model, len(prompts)
        self.logits, self.state = prefilled(model, batch, options, 1)

    def read(self, tokens: Tensor) -> None:
        """One more token (B, 1) a row."""
        self.logits = last(self.model(tokens, self.state))

    def held(self) -> tuple[float, int]:
        """Slots of a key-value head, on average, and bytes of a sequence."""
        found = list(attention_of(self.state))
        heads = [part.heads if isinstance(part, CacheState) else part.key.shape[1] for part in found]
        slots = sum(part.filled * count for part, count in zip(found, heads, strict=True)) / sum(heads)
        return slots, sum(part.nbytes for part in found) // self.rows


class WorkingReader:
    """The same with a working memory, row by row: a turn is a list that is closed when the next one begins."""

    def __init__(self, model: Any, options: Options, prompts: Tensor):
        assert options.memory is not None
        turns = (prompts == MARKER).all(0).nonzero()[:, 0].tolist()
        start = turns[-1] if turns else prompts.shape[1]  # what is asked first is said, as all turns are
        self._rows = [Row(options.memory, model, options, row) for row in prompts[:, :start]]
        for place in range(start, prompts.shape[1]):
            self.read(prompts[:, place : place + 1])

    @property
    def logits(self) -> Tensor:
        """(B, vocab_size), of what comes next."""
        return torch.cat([row.logits for row in self._rows])

    def read(self, tokens: Tensor) -> None:
        """One more token (B, 1) a row."""
        for row, token in zip(self._rows, tokens[:, 0].tolist(), strict=True):
            row.add(token)

    def held(self) -> tuple[float, int]:
        """See ``Reader``."""
        found = [list(attention_of(row.state)) for row in self._rows]
        slots = statistics.fmean(part.filled for one in found for part in one)
        return slots, round(statistics.fmean(sum(part.nbytes for part in one) for one in found))


class Turns:
    """A tokenizer to whom the marker before a turn closes one list and opens the next."""

    def decode(self, ids: list[int]) -> str:
        """One token as text."""
        return "][" if ids == [MARKER] else "."


def reader(model: Any, options: Options, prompts: Tensor) -> Reader | WorkingReader:
    """By the options."""
    return (Reader if options.memory is None else WorkingReader)(model, options, prompts)


def attention_of(state: Any) -> Iterator[CacheState | KeyValueState]:
    """What of a model's state remembers keys and values."""
    for one in state:
        yield from (part for part in parts(one) if isinstance(part, CacheState | KeyValueState))
