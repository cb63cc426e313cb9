"""The contract of a way to keep a model's weights in files."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from zoo.offload.slots import Slots, oldest


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

    A subclass names itself for ``policy="name"``.
    """

    named: ClassVar[dict[str, type[Offload]]] = {}
    paper: ClassVar[str] = ""

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
    def attach(self, parts: Sequence[Part], slots: Slots) -> None:
        """From now on the modules use what is in slots."""

    def count(self, room: int) -> int:
        """Slots that are taken of ``room``, at most, that the memory has."""
        return room

    def leaves(self) -> Callable[[Sequence[int]], int]:
        """See ``Slots``."""
        return oldest


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
        for name, tensor in zip(parts[number].names, slots.take(number), strict=True):
            parameter = parts[number].module.get_parameter(name)
            parameter.data = tensor.to(parameter.device)
        slots.announce(soon(number))

    def after(number: int, *_: Any) -> None:
        for name in parts[number].names:
            parameter = parts[number].module.get_parameter(name)
            parameter.data = absent(parameter)
        slots.release(number)
        slots.announce(soon(number))

    for number, part in enumerate(parts):
        part.module.register_forward_pre_hook(partial(before, number))
        part.module.register_forward_hook(partial(after, number))
    slots.announce([*sorted(slots.pinned), *turning[: ahead + 1]])
