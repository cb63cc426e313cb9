"""Batch invariance: every sequence of a batch by itself, so that its logits do not depend on the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.layers import ModelState

if TYPE_CHECKING:
    from zoo.language.base import LanguageModel


@contextmanager
def batch_invariant(model: LanguageModel) -> Iterator[LanguageModel]:
    """Within it the model's logits of a sequence are the same bits alone, in any batch, padded and packed.

    A product over several rows rounds otherwise than one over a single row, and padding moves where sums are cut. So
    each sequence is computed by itself, without its padding: a batch takes as long as its sequences one after another.

    Args:
        model: a language model; here it gives logits, no loss, and ``init_state`` makes states of single rows.
    """
    before, model.by_rows = model.by_rows, True
    try:
        yield model
    finally:
        model.by_rows = before


class RowStates(ModelState):
    """The states of a batch's rows, each a model's state of one row."""

    def of(self, states: Iterable[Any]) -> RowStates:
        """The same with other states."""
        return RowStates(states)

    def reorder(self, index: Tensor) -> None:
        """Row i becomes the old row ``index[i]``."""
        self[:] = [self[row].clone() for row in index.tolist()]


def by_rows(
    model: LanguageModel, tokens: Tensor, state: ModelState | None, seq_idx: Tensor | None, logits_to_keep: int
) -> Tensor:
    """``LanguageModel.forward`` with a call for each sequence; the logits of padding are 0.

    Raises:
        ValueError: for a state of other rows, or one whose rows are to hold several sequences.
    """
    if state is not None and (not isinstance(state, RowStates) or len(state) != len(tokens)):
        made = f"of {len(state)} rows" if isinstance(state, RowStates) else "made outside"
        raise ValueError(
            f"within batch_invariant the state must be from model.init_state({len(tokens)}) there, got one {made}"
        )
    if state is not None and seq_idx is not None and bool((seq_idx > 0).any()):
        raise ValueError(
            "within batch_invariant a state has one sequence a row: seq_idx must be 0 at its tokens and negative at "
            f"padding, got {int(seq_idx.max())}"
        )
    batch, length = tokens.shape
    first = length - (logits_to_keep or length)
    found = torch.zeros(batch, length - first, model.config.vocab_size, device=tokens.device)
    for row in range(batch):
        own: Any = None if state is None else state[row]
        for place in _sequences(length, None if seq_idx is None else seq_idx[row], tokens.device):
            kept = place[place >= first]
            if len(kept) or own is not None:
                logits = model(tokens[row : row + 1, place], own, logits_to_keep=max(1, len(kept)))
                found = found.to(logits.dtype)
                found[row, kept - first] = logits[0, logits.shape[1] - len(kept) :]
    return found


def _sequences(length: int, ids: Tensor | None, device: torch.device) -> tuple[Tensor, ...]:
    """Where in a row with sequence ids (T,) the tokens of each sequence are; padding, of negative ids, is nowhere."""
    if ids is None:
        return (torch.arange(length, device=device),)
    real = (ids >= 0).nonzero()[:, 0]
    _, counts = ids[real].unique_consecutive(return_counts=True)
    return real.split(counts.tolist())
