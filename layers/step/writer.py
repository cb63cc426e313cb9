"""A program in the making: what layers say of themselves, by their exact type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from zoo.kernels.step_program import Recurrences, Value
from zoo.layers.linear import is_own, is_watched
from zoo.layers.report import Reports
from zoo.layers.state import State
from zoo.layers.states import JointState

if TYPE_CHECKING:
    from zoo.layers.step.binders import Binder

Describe = Callable[["Writer", Any, Value], Value]
Described = TypeVar("Described", bound=Callable[..., Value])
DESCRIPTIONS: dict[type[nn.Module], Describe] = {}


class Undescribed(Exception):
    """A layer has no operations here."""


def describes(*kinds: type[nn.Module]) -> Callable[[Described], Described]:
    """The function adds the operations of layers of exactly these types."""

    def register(function: Described) -> Described:
        DESCRIPTIONS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Writer(Recurrences):
    """A program in the making, of modules, and what ties it to the states of a model."""

    def __init__(self, rows: int):
        super().__init__(rows)
        self.path: Callable[[State], State] = lambda state: state
        self.binders: list[list[Binder]] = []
        self.places: list[tuple[dict, tuple]] = []  # dictionary, and the modules or tensors that must be there
        self.hooks: list[dict] = []
        self.holding: list[Tensor] = []  # replaced in this step
        self.reporting: list[Reports] = []  # whose measures are of calls that are not made
        self.weights = torch.empty(0)

    def call(self, module: nn.Module, x: Value) -> Value:
        """What ``module`` makes of x."""
        self.visit(module)
        if type(module) not in DESCRIPTIONS:
            raise Undescribed(type(module).__name__)
        return DESCRIPTIONS[type(module)](self, module, x)

    def visit(self, module: nn.Module) -> None:
        """Note what ``module`` is made of."""
        if is_watched(module) or not is_own(module) or module.training:
            raise Undescribed(type(module).__name__)
        self.hooks += [module._forward_pre_hooks, module._forward_hooks]
        for held in (module._modules, module._parameters):
            if held:
                self.places.append((held, tuple(held.values())))
            for one in held.values():
                if isinstance(one, Tensor) and (type(one) not in (Tensor, nn.Parameter) or one.device.type != "cpu"):
                    raise Undescribed(f"{type(module).__name__} with {type(one).__name__}")

    def expect(self, module: nn.Module, *kinds: type[nn.Module]) -> None:
        """Note it, and that it is of exactly one of these types."""
        if type(module) not in kinds:
            raise Undescribed(type(module).__name__)
        self.visit(module)

    def place(self, module: nn.Module) -> None:
        """The program is out of date where ``module`` has other parts."""
        self.places.append((module._modules, tuple(module._modules.values())))

    def next_state(self) -> None:
        """What is tied to a state from here on is tied to the next one of the model."""
        self.binders.append([])

    def bind(self, binder: Binder) -> None:
        """Before each run the state of this layer is looked at."""
        self.binders[-1].append(binder)

    @contextmanager
    def part(self, index: int) -> Iterator[None]:
        """Within it the state is one part of the layer's."""
        before = self.path
        self.path = lambda state: cast(JointState, before(state)).parts[index]
        try:
            yield
        finally:
            self.path = before

    @property
    def is_current(self) -> bool:
        """Whether the model is as it was when this was written."""
        now = tuple(map(id, chain.from_iterable(held.values() for held, _ in self.places)))
        return not any(self.hooks) and now == self.parts and super().is_current

    def finish(self) -> None:
        """No further operations."""
        super().finish()
        self.parts = tuple(map(id, chain.from_iterable(parts for _, parts in self.places)))

    def memory_for(self, count: int) -> int:
        """Pointer to at least so many floats, which the layers share in this step."""
        if self.weights.numel() < count:
            self.holding.append(self.weights)
            self.weights = torch.empty(count)
        return self.weights.data_ptr()
