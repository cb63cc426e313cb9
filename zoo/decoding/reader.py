"""A model that reads from a state, and forgets again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.language.base import LanguageModel
from zoo.layers import ModelState, State


class Reader:
    """Reads tokens, of which only the first may stay.

    Args:
        model: reads.
        state: past the prompts; what it has seen is final.
    """

    def __init__(self, model: LanguageModel, state: ModelState):
        self.model, self.state = model, state
        self.given: list[Tensor] = []  # since the last commit
        state.commit()

    def __call__(self, tokens: Tensor, **options: Any) -> Tensor:
        """Logits (B, n, vocab_size) of tokens (B, n)."""
        self.given.append(tokens)
        return self.model(tokens, self.state, **options)

    @property
    def count(self) -> int:
        """Tokens that are not final."""
        return sum(tokens.shape[1] for tokens in self.given)

    def keep(self, count: int) -> None:
        """The first ``count`` are final, the others forgotten; what is recurrent goes back and reads those again."""
        if 0 < count < self.count and is_recurrent(self.state):
            tokens = torch.cat(self.given, 1)[:, :count]
            self.state.rollback()
            self.model(tokens, self.state, logits_to_keep=1)
        self.state.commit(count)
        self.given = []


def is_recurrent(state: ModelState) -> bool:
    """Whether some of it forgets all that is not final, or nothing."""
    return any(type(one).crop is State.crop for one in state)
