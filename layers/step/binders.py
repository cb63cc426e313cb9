"""What ties the operations of a program to the state of a layer."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from zoo.kernels.step_program import Value
from zoo.kernels.step_program.records import DTYPES
from zoo.layers.attention.latent import LatentAttention
from zoo.layers.attention.sliding_window import SlidingWindowState
from zoo.layers.attention.state import KeyValueState
from zoo.layers.cache.heads import HeadsState
from zoo.layers.cache.state import CacheState
from zoo.layers.state import State
from zoo.layers.step.writer import Writer


class Binder(ABC):
    """What ties operations to the state of a layer, which ``path`` finds in that of the block.

    Attributes:
        called: of a layer whose state may be called in the middle of the program, the number of the record before which
            it is, and of the one after it.
    """

    called: tuple[int, int] = (0, 0)

    def __init__(self, writer: Writer, kind: type[State]):
        self.writer, self.path, self.kind = writer, writer.path, kind

    def ready(self, state: State) -> bool:
        """Whether the state is of the plain kind that the operations know."""
        return type(state) is self.kind and state.seq_idx is None

    @abstractmethod
    def advance(self, state: State) -> None:
        """The operations read and write this state, and it has seen one more token."""

    def is_called(self, state: State) -> bool:
        """Whether ``call`` computes a part of the layer."""
        return False

    def call(self, state: State) -> None:
        """Compute it."""
        raise NotImplementedError(f"{type(self).__name__} leaves nothing to be called")


class Held(NamedTuple):
    """A tensor of a recurrent state: its name, the record that reads it and the argument of the old one, next to which
    is the new one; where it may be bfloat16, the argument behind says whether it is."""

    name: str
    record: int
    argument: int
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)


class Recurrent(Binder):
    """Tensors of a recurrent state.

    A tensor is replaced, as another may hold it; one that a step has made and nobody else holds is written to.
    """

    def __init__(self, writer: Writer, kind: type[State], *held: Held):
        super().__init__(writer, kind)
        self.held = held

    def ready(self, state: State) -> bool:
        """Contiguous tensors of a batch."""
        return super().ready(state) and all(self._fits(getattr(state, one.name), one.dtypes) for one in self.held)

    def _fits(self, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
        return len(tensor) == self.writer.rows and tensor.is_contiguous() and tensor.dtype in dtypes

    def advance(self, state: State) -> None:
        """The operations read the old tensors and write the new ones, which may be the same."""
        for name, number, argument, dtypes in self.held:
            row = self.writer.arguments[number]
            row[argument] = getattr(state, name).data_ptr()
            new = own(self.writer, state, name, torch.empty_like)
            row[argument + 1] = new.data_ptr()
            if dtypes == DTYPES:
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
    """A dense cache of keys and values; or what a policy governs, whose attention is called.

    Args:
        writer: of the program.
        turn, attend: numbers of its records that turn queries and keys and attend to a dense cache.
        layer: the attention.
        q, y: its queries, and what it makes of them.
    """

    of: type[KeyValueState] = KeyValueState
    latent = False

    def __init__(self, writer: Writer, turn: int, attend: int, layer: Any, q: Value, y: Value):
        super().__init__(writer, self.of)
        self.turn, self.attend, self.layer, self.q, self.y = turn, attend, layer, q.tensor, y.tensor
        self.called = attend, attend + 1

    def is_called(self, state: State) -> bool:
        """Under a policy."""
        return isinstance(state, CacheState | HeadsState)

    def call(self, state: State) -> None:
        """The policy attends from the queries to what it keeps, the new key and value too."""
        governed = cast(CacheState, state)
        q = self.q.unflatten(1, (self.layer.num_heads, -1))[:, :, None].clone()  # a policy may keep them
        y = governed.attend(q, self.key, self.value, governed.place(1), self.layer)
        self.y.copy_(y.flatten(1))

    def ready(self, state: State) -> bool:
        """No positions, ids or padding, and room for one more."""
        if isinstance(state, CacheState | HeadsState):
            return state.steps_alike and state.dtype == torch.float32
        if not super().ready(state):
            return False
        cache = cast(KeyValueState, state)
        plain = cache.position is None and cache.ids is None and cache.padding is None and cache.latent == self.latent
        held = cache.key, cache.value
        fits = all(t.is_contiguous() and t.dtype in DTYPES and len(t) == self.writer.rows for t in held)
        return plain and fits and cache.key.dtype == cache.value.dtype and (cache.room is None or cache.room > 0)

    def advance(self, state: State) -> None:
        """The next slot is written, and all are read; under a policy the key and the value are put aside."""
        if self.is_called(state):
            self.key, self.value = (torch.empty(self.writer.rows, *sizes) for sizes in self.sizes)
            position = cast(CacheState, state).place(1).position
            places = self.key.data_ptr(), self.value.data_ptr(), False, 1, 0, int(position)
            self.writer.arguments[self.turn][6:12] = places
            return
        cache = cast(KeyValueState, state)
        cache.make_room(1)
        self.point(cache, cache.filled)
        cache.filled += 1
        cache.seen += 1
        self.read(cache)

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Of a key and of a value of one step, without the batch."""
        return ((self.layer.num_kv_heads, 1, self.layer.head_dim),) * 2

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


class Latent(Cached):
    """A cache of what all heads share, their key and the vector that keys and values are made of; a policy is called
    for all that is made of it."""

    latent = True

    def __init__(self, writer: Writer, turn: int, attend: int, layer: LatentAttention, q: Value, y: Value):
        super().__init__(writer, turn, attend, layer, q, y)
        self.called = turn + 1, len(writer.records)

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        """The shared key's, and the vector's."""
        return (1, 1, self.layer.qk_rope_head_dim), (1, 1, self.layer.kv_lora_rank)


class Windowed(Cached):
    """The newest keys and values: where all slots are taken, they move up by one, in memory that nobody else holds."""

    of = SlidingWindowState

    def ready(self, state: State) -> bool:
        """As above; where there are fewer slots than the window has, and all are taken, the layer makes room."""
        if not super().ready(state) or self.is_called(state):
            return super().ready(state)
        cache = cast(SlidingWindowState, state)
        capacity = cache.key.shape[2]
        return cache.filled < capacity or cache.window in (None, capacity)

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
