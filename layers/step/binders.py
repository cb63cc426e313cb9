"""What ties the operations of a program to the state of a layer."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from zoo.kernels.step_program.records import DTYPES
from zoo.layers.attention.sliding_window import SlidingWindowState
from zoo.layers.attention.state import KeyValueState
from zoo.layers.state import State
from zoo.layers.step.writer import Writer


class Binder(ABC):
    """What ties operations to the state of a layer, which ``path`` finds in that of the block."""

    def __init__(self, writer: Writer, kind: type[State]):
        self.writer, self.path, self.kind = writer, writer.path, kind

    def ready(self, state: State) -> bool:
        """Whether the state is of the plain kind that the operations know."""
        return type(state) is self.kind and state.seq_idx is None

    @abstractmethod
    def advance(self, state: State) -> None:
        """The operations read and write this state, and it has seen one more token."""


class Recurrent(Binder):
    """Tensors of a recurrent state: (name, number of the record, argument of the old tensor, next to which is the new).

    A tensor is replaced, as another may hold it; one that a step has made and nobody else holds is written to.
    """

    def __init__(self, writer: Writer, kind: type[State], *names: tuple[str, int, int]):
        super().__init__(writer, kind)
        self.names = names

    def ready(self, state: State) -> bool:
        """Contiguous tensors of a batch."""
        tensors = [getattr(state, name) for name, *_ in self.names] if super().ready(state) else []
        return bool(tensors) and all(
            len(t) == self.writer.rows and t.is_contiguous() and t.dtype in (DTYPES if i == 0 else DTYPES[:1])
            for i, t in enumerate(tensors)
        )

    def advance(self, state: State) -> None:
        """The operations read the old tensors and write the new ones, which may be the same."""
        for name, number, argument in self.names:
            row = self.writer.arguments[number]
            row[argument] = getattr(state, name).data_ptr()
            new = own(self.writer, state, name, torch.empty_like)
            row[argument + 1] = new.data_ptr()
            if name == "conv":
                row[argument + 2] = new.dtype == torch.bfloat16
        state.seen += 1


def own(writer: Writer, state: State, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
    """The tensor of a state, if a step has made it and nobody else holds it; else what is made of it, put there."""
    old = getattr(state, name)
    if getattr(old, "of_a_step", False) and _held(old) == ALONE:
        return old
    new = make(old)
    new.of_a_step = True  # type: ignore[attr-defined]
    setattr(state, name, new)
    writer.holding.append(old)
    return new


def _held(tensor: Tensor) -> tuple[int, int]:
    """References to the tensor, and to its memory: those of views too."""
    return sys.getrefcount(tensor), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


def _alone() -> tuple[int, int]:
    held = {"one": torch.empty(0)}
    old = held["one"]
    return _held(old)


ALONE = _alone()  # what is counted in ``own`` where only the state holds a tensor


class Cached(Binder):
    """A dense cache of keys and values."""

    of: type[KeyValueState] = KeyValueState

    def __init__(self, writer: Writer, turn: int, attend: int):
        super().__init__(writer, self.of)
        self.turn, self.attend = turn, attend

    def ready(self, state: State) -> bool:
        """No positions, ids or padding, and room for one more."""
        if not super().ready(state):
            return False
        cache = cast(KeyValueState, state)
        plain = cache.position is None and cache.ids is None and cache.padding is None and not cache.latent
        held = cache.key, cache.value
        fits = all(t.is_contiguous() and t.dtype in DTYPES and len(t) == self.writer.rows for t in held)
        return plain and fits and cache.key.dtype == cache.value.dtype and (cache.room is None or cache.room > 0)

    def advance(self, state: State) -> None:
        """The next slot is written, and all are read."""
        cache = cast(KeyValueState, state)
        cache.make_room(1)
        self.point(cache, cache.filled)
        cache.filled += 1
        cache.seen += 1
        self.read(cache)

    def point(self, cache: KeyValueState, slot: int) -> None:
        """Where the new key and value go."""
        places = cache.key.data_ptr(), cache.value.data_ptr(), cache.key.dtype == torch.bfloat16
        self.writer.arguments[self.turn][6:12] = *places, cache.key.shape[2], slot, cache.seen

    def read(self, cache: KeyValueState) -> None:
        """All slots that are filled."""
        attend, capacity = self.writer.arguments[self.attend], cache.key.shape[2]
        attend[4:6] = cache.key.data_ptr(), cache.value.data_ptr()
        attend[7:10] = cache.key.dtype == torch.bfloat16, capacity, cache.filled
        attend[11] = self.writer.memory_for(int(attend[12]) * capacity * self.writer.rows)


class Windowed(Cached):
    """The newest keys and values: where all slots are taken, they move up by one, in memory that nobody else holds."""

    of = SlidingWindowState

    def advance(self, state: State) -> None:
        """The last slot is written, and all are read."""
        cache, window = cast(SlidingWindowState, state), cast(SlidingWindowState, state).key.shape[2]
        full = cache.filled == window
        if full:
            for name in ("key", "value"):
                own(self.writer, cache, name, torch.clone)
        self.point(cache, cache.filled - full)
        self.writer.arguments[self.turn][19] = full
        cache.filled += not full
        cache.seen += 1
        cache.unnamed += 1
        self.read(cache)
