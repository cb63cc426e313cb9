"""A model's state as transformers' cache."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from zoo.layers import ModelState, State


class StateCache(Cache):
    """A model's state where transformers wants a cache: ``past_key_values`` of the calls and of ``generate``.

    Args:
        state: from ``model.init_state``, or what calls have made of it.
    """

    def __init__(self, state: ModelState):
        super().__init__(layers=[])
        self.state = state

    def __len__(self) -> int:
        return len(self.state)

    @property
    def is_initialized(self) -> bool:
        """A state holds its memory from the beginning."""
        return True

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be forgotten: no part of the state is recurrent."""
        return all(type(state).crop is not State.crop for state in self.state)

    @property
    def batch_size(self) -> int:
        """Rows."""
        return next(len(tensor) for _, tensor in self.state[0].tensors())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens given so far, padding included."""
        return self.state[layer_idx].seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Back to before the first token."""
        self.state.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes the old row ``beam_idx[i]``."""
        self.state.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.state.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        device = next(tensor.device for _, tensor in self.state[0].tensors())
        self.state.reorder(torch.arange(self.batch_size, device=device).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens, as many as the negative number says; see ``State.crop``."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be negative, or 0 for none, got {tokens_to_remove}")
        if tokens_to_remove < 0:
            self.state.crop(tokens_to_remove)
