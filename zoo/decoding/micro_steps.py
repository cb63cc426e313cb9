"""HAMburger's steps of several tokens, which nobody verifies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.decoding.draft import Draft
from zoo.generate.decode import Saying, Step, generating
from zoo.generate.logits import last
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel
from zoo.language.hamburger import HamburgerLanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroSteps(Draft, name="micro_steps"):
    """A HAMburger says up to ``length`` tokens from one pass of its base model, and reads them as one.

    The law is the base model's only where ``confidence`` is 1: the text at temperature 0 is then its greedy text. Else
    a step goes on while the chance that it ends is below 1 - ``confidence``. The rows of a batch are continued one
    after another. The cache holds the tokens of the prompt and one slot a step.

    Paper: "HAMburger", arXiv 2505.20438.
    """

    confidence: float = 0.9
    """How sure the model must be that a step goes on."""

    def check(self, model: LanguageModel, options: Options) -> None:
        """Raise a ValueError for another model, and under a cache policy."""
        if not isinstance(model, HamburgerLanguageModel):
            raise ValueError(
                f"{type(model).__name__} has no micro steps: a hamburger has, see zoo.language.hamburger.over"
            )
        if options.cache is not None:
            raise ValueError("steps of several tokens are held in slots of the plain cache: leave out cache=")

    def begin(self, model: LanguageModel, options: Options) -> _MicroStepping:
        """Before the prompts."""
        return _MicroStepping(self, model, options)


class _MicroStepping:
    def __init__(self, draft: MicroSteps, model: Any, options: Options):
        self.draft, self.model, self.options = draft, model, options
        self.states: list[Any] = []  # of the rows

    @torch.no_grad()
    def steps(self, prompts: Batch) -> Iterator[Step]:
        """Token by token, the rows side by side."""
        with generating(self.model, self.options):
            rows = [self._row(row[None]) for row in prompts.repeated(self.options.num_samples).rows()]
            newest: list[Step] = [next(row) for row in rows]
            for _ in range(self.options.max_new_tokens):
                yield Step(*(torch.cat(parts) for parts in zip(*newest, strict=True)))
                if all(bool(step.ended) for step in newest):
                    return
                newest = [next(row, self._filler(step)) for row, step in zip(rows, newest, strict=True)]

    def _filler(self, step: Step) -> Step:
        return Step(torch.full_like(step.tokens, self.options.filler), torch.zeros_like(step.log_probs), step.ended)

    def _row(self, tokens: Tensor) -> Iterator[Step]:
        """The continuation of one prompt (1, T)."""
        model, options, counts = self.model, self.options, self.draft.counts
        left = options.max_new_tokens
        state = model.init_state(1, tokens.shape[1] + left)
        self.states.append(state)
        saying, passed = Saying(options, Batch(tokens), model.config.vocab_size), tokens.shape[1]
        for part in tokens.split(options.prefill_chunk or passed, 1):
            features = model.features(model.enter(part), state)[:, -1]
        for one in state:
            one.with_positions()
        while left and not saying.over:
            said: list[Tensor] = []
            yield from self._step(features, said, saying, min(left, self.draft.length, model.config.max_steps))
            left -= len(said)
            counts.passes, counts.tokens = counts.passes + 1, counts.tokens + len(said)
            counts.proposed, counts.accepted = counts.proposed + len(said) - 1, counts.accepted + len(said) - 1
            if left and not saying.over:
                length = torch.tensor([len(said)], device=tokens.device)
                for one in state:
                    one.seen += len(said) - 1  # the slot stands where the last of its tokens does
                features = model.features(model.merged(torch.cat(said, 1), length), state)[:, -1]

    def _step(self, features: Tensor, said: list[Tensor], saying: Saying, most: int) -> Iterator[Step]:
        """Tokens from features (1, F, dim) of one pass, which are put into ``said``."""
        x = features[:, -1:]
        while True:
            logits = last(self.model.say(x))
            step = saying.step(saying.shaper.drawn(logits), logits)
            said.append(step.tokens[:, None])
            yield step
            stops = self.model.micro.stops(x[:, -1]).sigmoid()
            if len(said) == most or saying.over or not bool(stops < 1 - self.draft.confidence):
                return
            x = self.model.micro(features, self.model.embed(torch.cat(said, 1)))
