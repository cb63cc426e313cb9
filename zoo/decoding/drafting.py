"""Drafts, one after the other, and what the model makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from zoo.decoding.accept import accept, draw
from zoo.decoding.draft import Draft
from zoo.generate.decode import Saying, Step, generating
from zoo.generate.logits import Shaper
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.kernels.dispatch import compute_dtype
from zoo.language.base import LanguageModel

DraftType = TypeVar("DraftType", bound=Draft)


class Proposal(NamedTuple):
    """Drafted tokens (B,), one after the other, and the laws (B, vocab_size) that they were drawn from."""

    tokens: list[Tensor]
    laws: list[Tensor]


class Rounds(ABC, Generic[DraftType]):
    """Prompts that a model continues, and the draft beside it, in rounds: one draws up tokens, the other reads them.

    All rows of a batch go on by as many tokens at a time: up to the first that some row does not accept. What another
    row would have accepted beyond is drafted again, so that each row has the model's law whatever the others are.

    Args:
        draft: its options.
        model: whose law it is.
        options: of the continuation.
    """

    def __init__(self, draft: DraftType, model: LanguageModel, options: Options):
        self.draft, self.model, self.options = draft, model, options

    @abstractmethod
    def read(self, prompts: Batch) -> Tensor:
        """The prompts, to model and draft: the model's logits (B num_samples, vocab_size) after them."""

    @abstractmethod
    def round(self, token: Tensor, most: int, saying: Saying) -> tuple[list[Step], int]:
        """What is said after ``token`` (B,), of a draft of at most ``most`` tokens; and how many were drafted a row."""

    def ready(self) -> AbstractContextManager[None]:
        """Within it what drafts, besides the model itself, is in eval mode."""
        return nullcontext()

    @torch.no_grad()
    def steps(self, prompts: Batch) -> Iterator[Step]:
        """The prompts once in parallel, then drafts, each of them read at once; see ``zoo.generate.decode.steps``."""
        with generating(self.model, self.options), self.ready():
            logits = self.read(prompts)
            saying = Saying(self.options, prompts.repeated(self.options.num_samples), logits.shape[-1])
            logits = wide(logits)
            said = [saying.step(draw(saying.shaper.probabilities(logits), self.options.generator), logits)]
            yield said[0]
            left = self.options.max_new_tokens - 1
            while left and not saying.over:
                live = int((~saying.ended).sum())
                said, proposed = self.round(said[-1].tokens, left - 1, saying)
                counts = self.draft.counts
                counts.passes, counts.tokens = counts.passes + live, counts.tokens + live * len(said)
                counts.proposed += live * proposed
                yield from said
                left -= len(said)


class Drafting(Rounds[DraftType], Generic[DraftType]):
    """Drafts of one token after the other; a subclass says who reads what."""

    @abstractmethod
    def guess(self, token: Tensor) -> Tensor:
        """The draft's logits (B, vocab_size) after one more token (B, 1): the newest one said, then each drafted."""

    @abstractmethod
    def verify(self, tokens: Tensor) -> Tensor:
        """The model's logits (B, n, vocab_size) after each of the newest token and those drafted, (B, n)."""

    @abstractmethod
    def keep(self, count: int) -> None:
        """The first ``count`` of the tokens given to ``verify`` are final, the others forgotten."""

    def most(self) -> int:
        """Tokens of the next draft."""
        return self.draft.length

    def note(self, laws: list[Tensor]) -> None:
        """The model's laws (B, vocab_size) of the tokens that it said of those given to ``verify``, before ``keep``."""

    def settled(self, index: int, row: Tensor, law: Tensor, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """What is said (B,) in place of the ``index``-th token of a draft, and where it is that, by the model's logits
        ``row`` and law (B, vocab_size)."""
        return accept(law, proposal.laws[index], proposal.tokens[index], self.options.generator)

    def round(self, token: Tensor, most: int, saying: Saying) -> tuple[list[Step], int]:
        """See ``Rounds``."""
        proposal = self._proposal(token, min(self.most(), most), saying.shaper.copy())
        logits = self.verify(torch.stack([token, *proposal.tokens], 1))
        said, laws = self._judged(logits, proposal, saying)
        self.note(laws)
        self.keep(len(said))
        return said, len(proposal.tokens)

    def _proposal(self, token: Tensor, most: int, shaper: Shaper) -> Proposal:
        """What the draft says after ``token`` (B,), drawn as the options want it.

        Where it ends depends on laws alone, never on the token that is drawn from the last of them.
        """
        made = Proposal([], [])
        while len(made.tokens) < most:
            law = shaper.probabilities(wide(self.guess(token[:, None])))
            if bool((law.amax(-1) < self.draft.confidence).all()):
                break
            token = draw(law, self.options.generator)
            shaper.note(token)
            made.tokens.append(token)
            made.laws.append(law)
        return made

    def _judged(self, logits: Tensor, proposal: Proposal, saying: Saying) -> tuple[list[Step], list[Tensor]]:
        """What is said of logits (B, 1 + drafted, vocab_size), and the laws of it."""
        said, laws, generator = [], [], self.options.generator
        for index, row in enumerate(wide(logits).unbind(1)):
            law, before = saying.shaper.probabilities(row), saying.ended
            if index < len(proposal.tokens):
                token, accepted = self.settled(index, row, law, proposal)
                self.draft.counts.accepted += int((accepted & ~before).sum())
            else:
                token, accepted = draw(law, generator), before
            said.append(saying.step(token, row))
            laws.append(law)
            if saying.over or not bool((accepted | before).all()):
                break
        return said, laws


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits.to(compute_dtype(logits))
