"""What a small model's guess of the answer looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.call import Call
from zoo.layers.cache.snapkv import SnapKV
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class SpecKV(SnapKV):
    """``SnapKV`` whose window goes on into what a draft model expects to come: what the guess attends to stays.

    ``zoo.generate`` lets ``draft`` continue the prompt by ``ahead`` tokens; the model reads them, and forgets them
    once the prompt's tokens are scored: by the largest attention that any query of the window and of the guess, in any
    head of a key-value head, gives a token or one of its neighbours within ``kernel`` places; among equals by its own.
    Without a draft the window is the prompt's alone. The prompt itself is read in full, in chunks too; a state that is
    used by hand, without ``zoo.generate``, keeps all of it while there is a draft.

    Args:
        budget, window, kernel: of ``SnapKV``.
        ahead: tokens of the guess.
        draft: a language model of the same tokens.

    Raises:
        ValueError: as ``SnapKV``, or for fewer than 1 token ahead.

    Paper: Galim et al., "Draft-based Approximate Inference for LLMs", arXiv 2506.08373. How long the guess is, is ours.
    """

    paper: ClassVar[str] = "2506.08373"

    kernel: int = 7
    ahead: int = 32
    draft: Any = None

    def __post_init__(self):
        super().__post_init__()
        require_at_least(1, ahead=self.ahead)

    def guessing(self, state: CacheState) -> None:
        """From now on a copy of the state is given the guess, not the prompt."""
        state.notes["guess"] = state.real.new_ones(len(state.key))

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Evict, or score by the guess, or wait for it with the window of the prompt so far."""
        if self.draft is None:
            return self.evict(state, self.score(state, call))
        if "query" in state.notes:
            q, at = torch.cat([state.notes["query"], call.q], 2), torch.cat([state.notes["at"], call.positions], 1)
            call = Call(q, at, call.attention)
        if "guess" in state.notes:
            state.notes["score"] = self._largest(state, call)
            return None
        newest = call.newest(self.window)
        state.notes |= {"query": newest.q.clone(), "at": newest.positions.clone()}
        return None

    def after_step(self, state: CacheState, call: Call) -> None:
        """The last chunk of a prompt, or a guess, may be one token."""
        if "query" in state.notes:
            self.after_prefill(state, call)

    def looked(self, state: CacheState, ahead: CacheState | None) -> None:
        """After the guess: ``ahead`` is a copy of the state that has read it; None for no guess."""
        query, at = (state.notes.pop(name, None) for name in ("query", "at"))
        if ahead is None or query is None or at is None:
            return
        score = ahead.notes.get("score")
        if score is None:  # no token of the guess passes this layer
            score = self._largest(state, Call(query, at, state.attention()))
        self.evict(state, score[..., : state.filled])

    def evict(self, state: CacheState, score: Tensor) -> None:
        """Keep the best, and the window."""
        budget = state.slots(self.budget, least=self.window + 1)
        if isinstance(budget, Tensor) or state.filled > budget:
            state.shrink(score.masked_fill(state.newest(self.window), torch.inf), budget, ordered=True)

    def score(self, state: CacheState, call: Call) -> Tensor:
        """By the prompt's window alone."""
        return self._largest(state, call.newest(self.window))

    def _largest(self, state: CacheState, call: Call) -> Tensor:
        """(B, G, filled), the ranks of the slots: equal maxima would be cut at random."""
        weights = state.weights(call).amax((2, 3))
        order = weights.argsort(dim=-1, stable=True)
        pooled = F.max_pool1d(weights, self.kernel, stride=1, padding=self.kernel // 2)
        order = order.gather(-1, pooled.gather(-1, order).argsort(dim=-1, stable=True))
        return order.argsort(-1).to(weights.dtype)
