"""Beam search: the likeliest continuations instead of the likeliest next tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.generate.decode import generating, prefilled, stepping
from zoo.generate.logits import Shaper, last
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel


class Beam(NamedTuple):
    """A continuation: its tokens, their log-probabilities as the model has them, what it is ranked by, and the beam
    that it continues."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    parent: int = 0


class Search:
    """The beams of one prompt.

    ``width`` beams go on, the likeliest that have not ended. One that ends is a result if it was among the ``width``
    likeliest; its score is the sum of its log-probabilities over length^length_penalty (Wu et al., arXiv 1609.08144,
    section 7, with the length itself as in transformers), and the ``width`` best results are kept, until no beam would
    be one of them if it ended now.
    """

    def __init__(self, options: Options):
        self.options, self.width, self.open = options, options.num_beams, True
        self.running = [Beam((), (), 0.0)] + [Beam((), (), -torch.inf)] * (self.width - 1)
        self.results: list[Beam] = []

    def advance(self, ranked: list[Beam], over: bool) -> None:
        """The likeliest candidates, best first, each a token longer; ``over``: none may grow further."""
        ended = [over or beam.tokens[-1] in self.options.ends for beam in ranked]
        if self.open:
            done = [beam for beam, end in zip(ranked[: self.width], ended, strict=False) if end]
            results = self.results + [beam._replace(score=self._score(beam)) for beam in done]
            self.results = sorted(results, key=lambda beam: -beam.score)[: self.width]
        if not over:
            self.running = [beam for beam, end in zip(ranked, ended, strict=True) if not end][: self.width]
            hopeless = len(self.results) == self.width and self._score(self.running[0]) <= self.results[-1].score
            self.open = self.open and not hopeless

    def _score(self, beam: Beam) -> float:
        return beam.score / len(beam.tokens) ** self.options.length_penalty


@torch.no_grad()
def search(model: LanguageModel, prompts: Batch, options: Options) -> list[Beam]:
    """The ``num_samples`` best continuations of each prompt, best first."""
    width = options.num_beams
    searches = [Search(options) for _ in prompts.tokens]
    with generating(model, options):
        logits, state = prefilled(model, prompts, options, width)
        step, shaper = stepping(model, options), Shaper(options, prompts.repeated(width), logits.shape[-1])
        for length in range(1, options.max_new_tokens + 1):
            over = length == options.max_new_tokens
            log_probs = logits.log_softmax(-1)
            for one, ranked in zip(
                searches, _candidates(searches, shaper.penalised(log_probs), log_probs), strict=True
            ):
                one.advance(ranked, over)
            if over or not any(one.open for one in searches):
                break
            going = [
                (row * width + beam.parent, beam.tokens[-1]) for row, one in enumerate(searches) for beam in one.running
            ]
            parents, tokens = torch.tensor(going, device=logits.device).unbind(1)
            state.reorder(parents)
            shaper.reorder(parents)
            shaper.note(tokens)
            logits = last(step(tokens[:, None], state))
    return [beam for one in searches for beam in one.results[: options.num_samples]]


def _candidates(searches: list[Search], scores: Tensor, log_probs: Tensor) -> Iterator[list[Beam]]:
    """Of each prompt the likeliest longer beams: enough that ``width`` go on if all others end."""
    options, width, size = searches[0].options, searches[0].width, scores.shape[-1]
    past = scores.new_tensor([beam.score for one in searches for beam in one.running])
    totals = (past[:, None] + scores).view(len(searches), -1)  # (B, width vocab_size)
    best = totals.topk(min(width * max(2, 1 + len(options.ends)), totals.shape[1]))
    own = log_probs.view(len(searches), -1).gather(1, best.indices)
    for one, *found in zip(searches, best.values.tolist(), best.indices.tolist(), own.tolist(), strict=True):
        yield [
            Beam((*before.tokens, index % size), (*before.log_probs, log_prob), score, index // size)
            for score, index, log_prob in zip(*found, strict=True)
            for before in [one.running[index // size]]
        ]
