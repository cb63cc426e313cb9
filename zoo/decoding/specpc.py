"""A prompt that is shortened before the model reads it, by what a small model attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generate.decode import evaluating, read
from zoo.generate.logits import last
from zoo.generate.prompts import Batch, batched
from zoo.language.base import LanguageModel
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.pruning import governed_parts
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class Looking(Policy):
    """Dense, and notes the largest attention that the end of a prompt, and all steps after it, give to each slot."""

    window: int = 64

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Of the last ``window`` tokens, whose weights rise from 0 to 1."""
        newest = call.newest(self.window)
        rising = torch.linspace(0, 1, self.window, device=call.q.device)[-newest.length :]
        self._note(state, state.weights(newest) * rising[:, None])

    def after_step(self, state: CacheState, call: Call) -> None:
        """Of the new token."""
        self._note(state, state.weights(call))

    def _note(self, state: CacheState, weights: Tensor) -> None:
        found = weights.amax((1, 2, 3))  # (B, filled)
        known = state.notes.get("score", found[:, :0])
        state.notes["score"] = torch.maximum(found, F.pad(known, (0, found.shape[1] - known.shape[1])))


@dataclass(frozen=True)
class SpecPC:
    """The model reads the tokens of a prompt that a draft model attends to, as if there were no others.

    A token's score is the largest attention that any layer from ``layer`` on and any head of the draft gives it, from
    the last ``window`` tokens, those weighted from 0 for the first to 1 for the last, and from ``ahead`` tokens by
    which the draft continues the prompt; or the score of a better token within a window of ``kernel`` around it. The
    window stays, then the best tokens stay, each with the ``kernel`` tokens around it, until there are ``budget``; the
    order stays, and positions are counted anew. Prompts within the budget stay whole.

    >>> zoo.generate(model, tokens, 100, compress=zoo.decoding.SpecPC(small, budget=1024))

    Args:
        draft: a language model of the same tokens, with attention.
        budget: tokens of a prompt that the model reads.
        window: tokens at the end that always stay.
        kernel: neighbours.
        layer: first layer with attention that counts; the published runs leave out 8 of 16.
        ahead: tokens of the guess.

    Raises:
        ValueError: for numbers below 1 (of ``layer`` and ``ahead`` 0), or a window beyond the budget.

    Paper: Galim et al., "Draft-based Approximate Inference for LLMs", arXiv 2506.08373.
    """

    draft: LanguageModel
    budget: int = 1024
    window: int = 64
    kernel: int = 64
    layer: int = 0
    ahead: int = 0

    def __post_init__(self):
        require_at_least(1, budget=self.budget, window=self.window, kernel=self.kernel)
        require_at_least(0, layer=self.layer, ahead=self.ahead)
        if self.window > self.budget:
            raise ValueError(f"the window always stays: got window {self.window}, budget {self.budget}")
        if not isinstance(self.draft, LanguageModel):
            raise ValueError(f"draft must be a language model, got {type(self.draft).__name__}")

    def check(self, model: LanguageModel) -> None:
        """Raise a ValueError for a model of other tokens."""
        if self.draft.config.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"SpecPC's draft must know the model's {model.config.vocab_size} tokens, got one of "
                f"{self.draft.config.vocab_size}"
            )

    def shorten(self, prompts: Batch) -> Batch:
        """The prompts, of which none is longer than the budget.

        Raises:
            ValueError: for a draft without attention, whose tokens pass some layers alone, or that is not so deep.
        """
        rows = prompts.rows()
        if max(map(len, rows)) <= self.budget:
            return prompts
        scores = Batch(self.scores(prompts), prompts.mask).rows()
        kept = [row[self.chosen(score)] for row, score in zip(rows, scores, strict=True)]
        return batched(kept, None, prompts.tokens.device)

    @torch.no_grad()
    def scores(self, prompts: Batch) -> Tensor:
        """What the draft gives to each token, (B, T), before its neighbours count."""
        tokens, mask = prompts
        length = tokens.shape[1]
        seq_idx = None if mask is None else mask.long() - 1
        with evaluating(self.draft):
            state = self.draft.init_state(len(tokens), cache=Looking(self.window))
            logits = last(read(self.draft, tokens, state, seq_idx, length))
            for _ in range(self.ahead):
                logits = last(self.draft(logits.argmax(-1)[:, None], state))
        parts = list(governed_parts(state))
        if len(parts) <= self.layer:
            raise ValueError(f"layer must be below the draft's {len(parts)} layers with attention, got {self.layer}")
        if not all(part.aligned for part in parts):
            raise ValueError(
                f"SpecPC's draft must give every token to every layer, and {type(self.draft).__name__} does not"
            )
        return torch.stack([part.notes["score"][:, :length] for part in parts[self.layer :]]).amax(0)

    def chosen(self, score: Tensor) -> Tensor:
        """The places of the tokens of one prompt that stay, in order, by the scores (T,) of all."""
        length, before = len(score), (self.kernel - 1) // 2
        if length <= self.budget:
            return torch.arange(length, device=score.device)
        padded = F.pad(score, (before, self.kernel - 1 - before))
        near = F.max_pool1d(padded[None], self.kernel, stride=1)[0]
        best = near.argsort(descending=True, stable=True)[: self.budget].tolist()
        around = sorted(range(-before, self.kernel - before), key=abs)  # the nearest first
        stays = dict.fromkeys(range(length - self.window, length))
        for place in best:
            stays |= dict.fromkeys(place + step for step in around if 0 <= place + step < length)
            if len(stays) >= self.budget:
                break
        return torch.tensor(sorted(list(stays)[: self.budget]), device=score.device)
