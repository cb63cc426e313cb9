"""Working memory: lists of subtasks that were closed leave, and what follows them is read again without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.generate.decode import Saying, Step, generating, read
from zoo.generate.logits import last
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel
from zoo.layers import ModelState
from zoo.layers.attention.state import KeyValueState
from zoo.layers.options import require_at_least
from zoo.layers.states import parts


@dataclasses.dataclass
class Memory:
    """What became of the working memory, in all rows.

    Attributes:
        pruned: tokens that left it.
        reread: tokens that were read again.
        most: tokens that a row held at once.
    """

    pruned: int = 0
    reread: int = 0
    most: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TIM:
    """A model that says JSON in which tasks have lists of subtasks forgets those that are done.

    A list that is closed waits with the last ``keep`` of them; the oldest one beyond leaves, what is between its
    brackets: the thoughts and conclusions around it, all lists that are open and the prompt stay. A list takes those
    within it along. What came after a list that left is read again, behind what came before it and at positions without
    a gap, so that the memory is at any time that of the visible text alone. A bracket in a string is none; what
    shares a token with a bracket stays. Rows decode one by one.

    >>> zoo.generate(model, tokens, 2000, tokenizer=tokenizer, memory=zoo.decoding.TIM(keep=1))

    Raises:
        ValueError: for fewer than 0 lists; and, of ``zoo.generate``, without a tokenizer or beside what has a memory of
            its own.

    Paper: Luo et al., "Beyond Context Limits: Subconscious Threads for Long-Horizon Reasoning", arXiv 2507.16784.
    """

    keep: int = 1
    """Closed lists that stay."""
    key: str | None = "subtasks"
    """Whose lists these are; every list when None."""
    counts: Memory = dataclasses.field(default_factory=Memory, compare=False, repr=False)
    """What became of all rows so far."""

    def __post_init__(self):
        require_at_least(0, keep=self.keep)

    def check(self, options: Options) -> None:
        """Raise a ValueError for options that it does not go with."""
        if options.tokenizer is None:
            raise ValueError("TIM reads what is said: give the model's tokenizer=")
        for name, plain in (
            ("num_beams", 1), ("compile", False), ("batch_invariant", False), ("cache", None), ("draft", None),
        ):  # fmt: skip
            if getattr(options, name) != plain:
                raise ValueError(f"memory=TIM() does not go with {name}={getattr(options, name)!r}: leave out one")

    @torch.no_grad()
    def steps(self, model: LanguageModel, prompts: Batch, options: Options) -> Iterator[Step]:
        """See ``zoo.generate.decode.steps``."""
        prompts = prompts.repeated(options.num_samples)
        with generating(model, options):
            rows = [Row(self, model, options, row) for row in prompts.rows()]
            logits = torch.cat([row.logits for row in rows])
            saying = Saying(options, prompts, logits.shape[-1])
            for index in range(options.max_new_tokens):
                said = saying.step(saying.shaper.drawn(logits), logits)
                yield said
                if index + 1 == options.max_new_tokens or saying.over:
                    return
                for row, token, over in zip(rows, said.tokens.tolist(), said.ended.tolist(), strict=True):
                    if not over:
                        row.add(token)
                logits = torch.cat([row.logits for row in rows])


class Row:
    """One text: what is visible of it, the state after that, and the logits (1, vocab_size) of what comes next."""

    def __init__(self, tim: TIM, model: LanguageModel, options: Options, prompt: Tensor):
        self.tim, self.model, self.options, self.device = tim, model, options, prompt.device
        self.visible: list[int] = []
        self.lists = _Lists(tim.key)
        self.state = model.init_state(1)
        self._read(prompt.tolist())

    def add(self, token: int) -> None:
        """One more token, and what it closes."""
        assert self.options.tokenizer is not None
        self.lists.read(self.options.tokenizer.decode([token]), len(self.visible))
        gone = [self.lists.leave() for _ in range(len(self.lists.closed) - self.tim.keep)]
        if not gone:
            return self._read([token])
        rest, first = [*self.visible, token], min(start for start, _ in gone)
        for start, stop in gone:
            del rest[start:stop]
            self.tim.counts.pruned += stop - start
        self.state, first = _back(self.model, self.state, first)
        self.visible = rest[:first]
        self.tim.counts.reread += len(rest) - first - 1
        return self._read(rest[first:])

    def _read(self, tokens: list[int]) -> None:
        self.visible += tokens
        ids = torch.tensor([tokens], device=self.device)
        self.logits = last(read(self.model, ids, self.state, None, self.options.prefill_chunk or len(tokens)))
        self.tim.counts.most = max(self.tim.counts.most, len(self.visible))


def _back(model: LanguageModel, state: ModelState, length: int) -> tuple[ModelState, int]:
    """The state after the first ``length`` tokens, or, where something was forgotten or is recurrent, before the
    first; and how many it has seen."""
    if all(type(part) is KeyValueState and part.filled == part.seen for one in state for part in parts(one)):
        state.crop(length)
        return state, length
    return model.init_state(1), 0


class _Lists:
    """Reads JSON as it is said, and knows which lists under a key are open, and which closed."""

    def __init__(self, key: str | None):
        self.key = key
        self.open: list[int | None] = []  # where their contents begin, None for lists of something else
        self.closed: list[tuple[int, int]] = []  # contents, the oldest first
        self._string: list[str] | None = None  # the characters of one that is open
        self._before: str | None = None  # the string that was said last, if only a colon came since
        self._escaped = False

    def read(self, text: str, index: int) -> None:
        """The text of the token at ``index`` of what is visible."""
        for character in text:
            if self._string is not None:
                self._in_string(character)
            elif character == '"':
                self._string = []
            elif not (character.isspace() or character == ":"):
                self._bracket(character, index)
                self._before = None

    def leave(self) -> tuple[int, int]:
        """The contents of the list that was closed first: it leaves, and all behind it moves up."""
        start, stop = gone = self.closed.pop(0)
        self.open = [at if at is None or at < stop else at - (stop - start) for at in self.open]
        self.closed = [(a - (stop - start), b - (stop - start)) if a >= stop else (a, b) for a, b in self.closed]
        return gone

    def _in_string(self, character: str) -> None:
        assert self._string is not None
        if character == '"' and not self._escaped:
            self._before, self._string = "".join(self._string), None
        else:
            self._string.append(character)
            self._escaped = character == "\\" and not self._escaped

    def _bracket(self, character: str, index: int) -> None:
        if character == "[":
            self.open.append(index + 1 if self.key in (None, self._before) else None)
        elif character == "]" and self.open:
            start = self.open.pop()
            if start is not None and start < index:
                self.closed = [one for one in self.closed if one[0] < start]
                self.closed.append((start, index))
