"""Modules between the weights of a model and the layers that compute with them: to round, to widen, to add noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


class RowsHook:
    """What an embedding's rows go through, as a forward hook."""

    def __init__(self, between: nn.Module):
        self.between = between

    def __call__(self, module: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
        return self.between(rows)


def put_between(model: nn.Module, names: Iterable[str], make: Callable[[str], nn.Module]) -> None:
    """Compute with ``make(name)(weight)`` in place of each named weight; of an embedding with that of its rows. Weights
    stay as they are, learn and are tied as before, in place.

    Args:
        names: of ``compressible``.
        make: a module, from a tensor to one of its shape, for the weight of a name; of an embedding it has no state.
    """
    for name in list(names):
        place, _, attribute = name.rpartition(".")
        module = model.get_submodule(place)
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(RowsHook(make(name)))
        else:
            parametrize.register_parametrization(module, attribute, make(name), unsafe=True)


def between(model: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Layer, name of its weight and what stands between, for all of a kind; of embeddings none."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            held: Any = module.parametrizations
            for name, each in held.items():
                yield from ((module, name, one) for one in each if isinstance(one, kind))


def take_away(model: nn.Module, kind: type[nn.Module]) -> None:
    """Let layers compute with their weights again, where a module of that kind is between, in place."""
    for module, name, _ in list(between(model, kind)):
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, RowsHook) and isinstance(hook.between, kind):
                del module._forward_hooks[key]
