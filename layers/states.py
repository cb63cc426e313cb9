"""Several states as one: of mixers side by side, and of a whole model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from zoo.layers.state import State

SeveralType = TypeVar("SeveralType", bound="Several")


class Several(ABC):
    """What a user may do with a state is done with each of several."""

    @property
    @abstractmethod
    def states(self) -> Sequence[State]:
        """The states, in order."""

    @abstractmethod
    def of(self: SeveralType, states: Iterable[State]) -> SeveralType:
        """The same with other states."""

    @property
    def nbytes(self) -> int:
        """Memory of all states, in bytes."""
        return sum(state.nbytes for state in self.states)

    @property
    def room(self) -> int | None:
        """Steps that all of them can still be given; None for any number."""
        return min((state.room for state in self.states if state.room is not None), default=None)

    def reset(self) -> None:
        """Every state back to before the first token."""
        for state in self.states:
            state.reset()

    def reorder(self, index: Tensor) -> None:
        """Reorder the batch of every state."""
        for state in self.states:
            state.reorder(index)

    def crop(self, length: int) -> None:
        """Crop every state; raises ValueError, changing nothing, where one of them is recurrent."""
        for state in self._recurrent_first():
            state.crop(length)

    def commit(self, count: int | None = None) -> None:
        """Commit every state; raises as ``rollback``."""
        for state in self._recurrent_first():
            state.commit(count)

    def rollback(self, count: int | None = None) -> None:
        """Roll every state back; raises ValueError, changing nothing, where one of them cannot."""
        for state in self._recurrent_first():
            state.rollback(count)

    def to(
        self: SeveralType, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SeveralType:
        """Every state on another device or of another dtype, see ``State.to``."""
        return self.of(state.to(device, dtype) for state in self.states)

    def clone(self: SeveralType) -> SeveralType:
        """Every state with the same values, to go its own way."""
        return self.of(state.clone() for state in self.states)

    def detach(self: SeveralType) -> SeveralType:
        """Every state without its history, see ``State.detach``."""
        return self.of(state.detach() for state in self.states)

    def _recurrent_first(self) -> list[State]:
        return sorted(self.states, key=lambda state: type(state).crop is not State.crop)


class JointState(Several, State):
    """The states of several mixers that work side by side on the same tokens."""

    crop = State.crop  # pyright: ignore[reportAssignmentType]

    def __init__(self, parts: tuple[State, ...]):
        self.parts = parts

    @property
    def seen(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Steps given so far, padding included."""
        return self.parts[0].seen

    @property
    def states(self) -> tuple[State, ...]:
        """The parts."""
        return self.parts

    def of(self, states: Iterable[State]) -> JointState:
        """A joint state of other parts."""
        return JointState(tuple(states))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors of all parts, "index.name"."""
        for index, part in enumerate(self.parts):
            for name, tensor in part.tensors():
                yield f"{index}.{name}", tensor


class ModelState(Several, list[State]):
    """The states of a model's mixers, in order.

    Attributes:
        governed: a cache policy says what attention remembers.
        image: (B, n, dim), what rows see besides their text, in a model of images.
    """

    governed: bool = False
    image: Tensor | None = None

    @property
    def states(self) -> list[State]:
        """The mixers' states."""
        return self

    def of(self, states: Iterable[State]) -> ModelState:
        """A model's state of other states."""
        state = ModelState(states)
        state.governed, state.image = self.governed, self.image
        return state

    def reset(self) -> None:
        """Back to before the first token, and image."""
        super().reset()
        self.image = None

    def reorder(self, index: Tensor) -> None:
        """Row i becomes the old row ``index[i]``."""
        super().reorder(index)
        self.image = None if self.image is None else self.image[index]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ModelState:
        """Every state, and the image, on another device or of another dtype."""
        moved = super().to(device, dtype)
        moved.image = None if self.image is None else self.image.to(device, dtype)
        return moved

    def detach(self) -> ModelState:
        """Every state, and the image, without its history."""
        cut = super().detach()
        cut.image = None if self.image is None else self.image.detach()
        return cut


def parts(state: State) -> Iterator[State]:
    """A state, or those that it is made of."""
    if isinstance(state, Several):
        for part in state.states:
            yield from parts(part)
    else:
        yield state
