"""The contract of a sequence mixer: anything that moves information along time."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.layers.branches import BranchedState
from zoo.layers.precision import KeepsFloat32
from zoo.layers.state import State


def skips_padding(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The ``forward`` of a recurrent mixer, from a state past padding: each row advances by its own tokens alone.

    Rows with equally many tokens run together, without their padding, from their own part of the state. The nodes of a
    tree run each from the state of its parent.
    """

    @functools.wraps(forward)
    def skipping(self: Mixer, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        if state is None:
            return forward(self, x, None, seq_idx=seq_idx)
        if isinstance(state, BranchedState):
            return state.read(functools.partial(skipping, self), x)
        if seq_idx is None or _runs_at_once(seq_idx, fresh=state.seen == 0):
            y = forward(self, x, state, seq_idx=seq_idx)
        else:
            y = _by_length(functools.partial(forward, self), x, state, seq_idx, self.out_dim or x.shape[-1])
        state.seen += x.shape[1]
        return y

    return skipping


def _runs_at_once(seq_idx: Tensor, fresh: bool) -> bool:
    """No padding, or only before the first tokens of a fresh state: a sequence which the next one forgets."""
    real = seq_idx >= 0
    leading = fresh and bool((real[:, 1:] >= real[:, :-1]).all() and real[:, -1].all())
    return leading or bool(real.all())


def _by_length(forward: Callable[..., Tensor], x: Tensor, state: State, seq_idx: Tensor, out_dim: int) -> Tensor:
    real = seq_idx >= 0
    length, order = real.sum(1), (~real).to(torch.uint8).argsort(dim=1, stable=True)
    y = x.new_zeros(*x.shape[:2], out_dim)
    for count in length.unique().tolist():
        rows = (length == count).nonzero()[:, 0]
        if count:
            places, part = (rows[:, None], order[rows, :count]), state.select(rows)
            found = forward(x[places], part, seq_idx=seq_idx[places])
            y = y.to(found.dtype).index_put(places, found)
            state.put(rows, part)
    return y


class Mixer(KeepsFloat32, ABC):
    """(B, T, dim) -> (B, T, dim), in parallel over T or from a state; both give the same output.

    Attributes:
        out_dim: channels of the output, where they are others than those of the input.
    """

    out_dim: int | None = None
    compute: Tensor  # empty, and follows the module: the device and dtype it computes in, whatever its projections are

    def __init__(self):
        super().__init__()
        self.register_buffer("compute", torch.empty(0), persistent=False)

    @property
    def whole_in_training(self) -> bool:
        """In training mode a sequence is computed otherwise as a whole than part after part from a state, so that what
        trains by parts must refuse it; other layers of a block may have this, too."""
        return False

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """Mix along time. With a state, start from it and advance it.

        Args:
            x: (B, T, dim).
            state: from ``init_state``, or what a call has made of it.
            seq_idx: (B, T) integers, packed sequences that do not see each other. Negative ids are padding, at the
                beginning of a row; with a state it is skipped wherever it stands. The first sequence continues that of
                the state when its id is that of the state's newest token, or when no id has been given before.
        """

    def remember(self, x: Tensor, state: State, *, seq_idx: Tensor | None = None) -> None:
        """Advance a state by x (B, T, dim) whose outputs nobody reads; attention leaves out what only they need."""
        self(x, state, seq_idx=seq_idx)

    @abstractmethod
    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before the first token, on the device and in the dtype that the mixer computes in unless given."""

    def placement(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of a state: as given, else those of the mixer, also where its projections are compressed."""
        return torch.device(self.compute.device if device is None else device), dtype or self.compute.dtype

    @abstractmethod
    def state_size(self, length: int) -> int:
        """Numbers the state holds for one sequence after ``length`` tokens."""
