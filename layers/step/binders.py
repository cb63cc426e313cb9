"""What ties the operations of a program to the state of a layer."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor

from zoo.kernels.step_program.program import DTYPES
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
            old, row = getattr(state, name), self.writer.arguments[number]
            row[argument] = old.data_ptr()
            if not getattr(old, "of_a_step", False) or _held(old) != ALONE:
                new = torch.empty_like(old)
                new.of_a_step = True  # type: ignore[attr-defined]
                setattr(state, name, new)
                self.writer.holding.append(old)
                old = new
            row[argument + 1] = old.data_ptr()
            if name == "conv":
                row[argument + 2] = old.dtype == torch.bfloat16
        state.seen += 1


def _held(tensor: Tensor) -> tuple[int, int]:
    """References to the tensor, and to its memory: those of views too."""
    return sys.getrefcount(tensor), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


def _alone() -> tuple[int, int]:
    held = {"one": torch.empty(0)}
    old = held["one"]
    return _held(old)


ALONE = _alone()  # what is counted in ``advance`` where only the state holds a tensor


class Cached(Binder):
    """A dense cache of keys and values."""

    def __init__(self, writer: Writer, turn: int, attend: int):
        super().__init__(writer, KeyValueState)
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
        key, value, capacity = cache.key.data_ptr(), cache.value.data_ptr(), cache.key.shape[2]
        brief = cache.key.dtype == torch.bfloat16
        turn, attend = self.writer.arguments[self.turn], self.writer.arguments[self.attend]
        turn[6:12] = key, value, brief, capacity, cache.filled, cache.seen
        cache.filled += 1
        cache.seen += 1
        attend[4:6] = key, value
        attend[7:10] = brief, capacity, cache.filled
        attend[11] = self.writer.memory_for(int(attend[12]) * capacity * self.writer.rows)
