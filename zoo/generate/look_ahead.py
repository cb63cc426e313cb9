"""A guess of what comes after a prompt, read and forgotten, for the cache policies that ask for one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from zoo.language.base import LanguageModel
from zoo.language.rows import RowStates
from zoo.layers import ModelState
from zoo.layers.cache import SpecKV
from zoo.layers.cache.state import CacheState
from zoo.layers.states import parts

Guess = Callable[[LanguageModel, int], Tensor]


def look_ahead(model: LanguageModel, state: ModelState, guess: Guess) -> None:
    """Show the policies that have a draft what the model makes of its guess, and evict what they let go.

    Args:
        model: has read the prompt into ``state``.
        state: of the model.
        guess: gives the (B, n) tokens by which a draft continues the prompt.

    Raises:
        ValueError: for a batch-invariant model, whose rows are read one by one, or a draft of other tokens.
    """
    waiting = [] if isinstance(state, RowStates) else _waiting(state)
    if isinstance(state, RowStates) and any(map(_waiting, state)):  # type: ignore[arg-type]
        raise ValueError("SpecKV looks ahead of all rows at once: leave out batch_invariant, or its draft")
    for policy in {part.policy: None for part in waiting}:
        assert isinstance(policy, SpecKV)
        if policy.draft.config.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"SpecKV's draft must know the model's {model.config.vocab_size} tokens, got one of "
                f"{policy.draft.config.vocab_size}"
            )
        copied = state.detach()  # shares its memory, and writes behind what the state holds
        for ahead in _flat(copied):
            if ahead.policy == policy:
                policy.guessing(ahead)
        model(guess(policy.draft, policy.ahead), copied, logits_to_keep=1)
        for ours, ahead in zip(_flat(state), _flat(copied), strict=True):
            if ours.policy == policy:
                policy.looked(ours, ahead)


def _flat(state: ModelState) -> list[CacheState]:
    return [part for one in state for part in parts(one) if isinstance(part, CacheState)]


def _waiting(state: ModelState) -> list[CacheState]:
    return [part for part in _flat(state) if isinstance(part.policy, SpecKV) and "query" in part.notes]
