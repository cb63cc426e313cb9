"""A gated recurrent unit as a mixer: what the memory of world models was before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.layers.mixer import Mixer, skips_padding
from zoo.layers.state import State, keep_rows


@dataclass
class GRUState(State):
    """h (B, dim)."""

    h: Tensor


class GRU(Mixer):
    """A gated recurrent unit, one step after the other.

    Args:
        dim: width of the input and of the memory.

    Paper: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", arXiv 1406.1078.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.cell = nn.GRUCell(dim, dim)

    @skips_padding
    def forward(self, x: Tensor, state: GRUState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        rows = None if state is None else state.advance_sequence(seq_idx)
        h = x.new_zeros(len(x), self.dim) if state is None else keep_rows(state.h, rows)
        found = []
        for t, step in enumerate(x.unbind(1)):
            if t and seq_idx is not None:
                h = keep_rows(h, seq_idx[:, t] == seq_idx[:, t - 1])
            h = self.cell(step, h)
            found.append(h)
        if state is not None:
            state.h = h
        return torch.stack(found, 1)

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> GRUState:
        """Zeros."""
        device, dtype = self.placement(device, dtype)
        return GRUState(torch.zeros(batch_size, self.dim, device=device, dtype=dtype))

    def state_size(self, length: int) -> int:
        """Constant in ``length``."""
        return self.dim
