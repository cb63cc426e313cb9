"""The contract of a way to keep a model's weights in files."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from zoo.offload.files import Piece, room_of
from zoo.offload.slots import Slots, Traffic, Unit


class Part(NamedTuple):
    """Parameters that are loaded at once.

    Attributes:
        module: what uses them.
        names: of the parameters, within it.
        index: which of the tensors along their first dimension; None for whole parameters.
    """

    module: nn.Module
    names: tuple[str, ...]
    index: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offload(ABC):
    """A way to offload: what is loaded at once, how much of it is held, and in which order. Everything else stays.

    A subclass names itself for ``policy="name"``. ``bundles``: parts are not used in the form that models have.
    """

    named: ClassVar[dict[str, type[Offload]]] = {}
    paper: ClassVar[str] = ""
    bundles: ClassVar[bool] = False

    def __init_subclass__(cls, name: str | None = None, **options: Any):
        super().__init_subclass__(**options)
        if name is not None:
            Offload.named[name] = cls

    @abstractmethod
    def parts(self, model: Any) -> list[Part]:
        """What is loaded at once, in the order in which a model uses it.

        Raises:
            ValueError: for a model that has no such parts.
        """

    @abstractmethod
    def least(self, parts: Sequence[Part]) -> int:
        """Bytes without which nothing can be loaded."""

    @abstractmethod
    def install(self, parts: Sequence[Part], pieces: Sequence[Sequence[Piece]], room: int) -> Held:
        """From now on the modules use what is loaded: of each part the pieces, into ``room`` bytes."""

    def bundled(self, part: Part, tensors: Sequence[Tensor]) -> Tensor:
        """The form in which a part is written to a file of its own, where ``bundles``."""
        raise NotImplementedError


class Held(Protocol):
    """What is in memory, and was read."""

    traffic: Traffic

    @property
    def nbytes(self) -> int: ...


class Slotted(Offload):
    """Parts are loaded whole, into slots as large as the largest."""

    @abstractmethod
    def attach(self, parts: Sequence[Part], slots: Slots) -> None:
        """From now on the modules use what is in slots."""

    def count(self, room: int) -> int:
        """Slots that are taken of ``room``, at most, that the memory has."""
        return room

    def slot(self, parts: Sequence[Part]) -> int:
        """Bytes of a slot."""
        return max(sum(room_of(tensor.nbytes) for tensor in tensors_of(part)) for part in parts)

    def least(self, parts: Sequence[Part]) -> int:
        """A slot."""
        return self.slot(parts)

    def install(self, parts: Sequence[Part], pieces: Sequence[Sequence[Piece]], room: int) -> Slots:
        """See ``Offload``."""
        units = [Unit(part.names[0], tuple(own)) for part, own in zip(parts, pieces, strict=True)]
        slots = Slots(units, min(self.count(room // self.slot(parts)), len(units)))
        self.attach(parts, slots)
        return slots


def tensors_of(part: Part) -> list[Tensor]:
    """Its tensors."""
    found = [held_of(parameter_of(part.module, name)) for name in part.names]
    return found if part.index is None else [tensor[part.index] for tensor in found]


def parameter_of(module: nn.Module, name: str) -> Any:
    """A parameter of a module or of those in it, whole or shared out."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path)._parameters[leaf]


def held_of(parameter: Any) -> Tensor:
    """What this process has of a parameter: all of it, or its part where processes share a model."""
    return getattr(parameter, "_local_tensor", parameter)


def hold(parameter: Any, tensor: Tensor) -> None:
    """Let a parameter, or the part of it that this process has, be in another memory."""
    if hasattr(parameter, "_local_tensor"):
        parameter._local_tensor = tensor
    else:
        parameter.data = tensor


def watched(module: nn.Module) -> None:
    """Keep a module out of programs of steps, which would read its parameters themselves."""
    module.register_forward_pre_hook(_watch)


def _watch(*_: Any) -> None:
    """Sees everything, and does nothing."""


def absent(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes no memory."""
    return _nothing(tensor.dtype, tensor.device).expand(tensor.shape)


@lru_cache(None)
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)


def use_in_turn(parts: Sequence[Part], slots: Slots, kept: int = 0) -> None:
    """Modules that run one after the other, again and again: each finds its parameters, and lets those that follow be
    loaded, as many as there are slots.

    Args:
        parts: of the modules.
        slots: for them.
        kept: slots whose parts, spread evenly, never leave.
    """
    count = len(parts)
    slots.pinned = frozenset(index * count // kept for index in range(kept))
    turning = [number for number in range(count) if number not in slots.pinned]
    ahead = min(len(slots.memory) - kept, len(turning)) - 1

    def soon(number: int) -> list[int]:
        later = sum(one <= number for one in turning)
        return [turning[(later + step) % len(turning)] for step in range(ahead)]

    def before(number: int, *_: Any) -> None:
        for other in slots.in_use - {number}:  # of a pass that was broken off
            put_back(other)
        for name, tensor in zip(parts[number].names, slots.take(number), strict=True):
            parameter = parameter_of(parts[number].module, name)
            hold(parameter, tensor.to(parameter.device))
        slots.announce(soon(number))

    def put_back(number: int) -> None:
        for name in parts[number].names:
            parameter = parameter_of(parts[number].module, name)
            hold(parameter, absent(held_of(parameter)))
        slots.release(number)

    def after(number: int, *_: Any) -> None:
        put_back(number)
        slots.announce(soon(number))

    for number, part in enumerate(parts):
        part.module.register_forward_pre_hook(partial(before, number))
        part.module.register_forward_hook(partial(after, number))
    slots.announce([*sorted(slots.pinned), *turning[: ahead + 1]])
