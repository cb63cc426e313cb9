"""Modules that compute in another way for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

Forward = Callable[..., Tensor]


@contextmanager
def wrapped(modules: Iterable[nn.Module], wrap: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """What a module computes within is ``wrap(module, its forward)``; hooks, and whoever wraps it too, stay."""
    changed: list[tuple[nn.Module, Forward | None]] = []
    try:
        for module in modules:
            changed.append((module, module.__dict__.get("forward")))
            module.forward = wrap(module, module.forward)
        yield
    finally:
        for module, before in reversed(changed):
            del module.__dict__["forward"]
            if before is not None:
                module.forward = before
