"""A model block by block: what each is called with, what it gives, and what it would give with other weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from zoo.layers.moe.experts import RoutedExperts
from zoo.quantize.calibration import Calibration


class Call(NamedTuple):
    """One call of a block: its arguments, and the floating tensors that it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]


def blocks(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """The members of a model's outermost lists of modules, in order, with the names of the weights inside."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and not any(_inside(name, block) for block in found):
            found |= {f"{name}.{child}" if name else child: [] for child, _ in module.named_children()}
    for name in names:
        for block in found:
            if _inside(name, block):
                found[block].append(name)
    return {block: inside for block, inside in found.items() if inside}


def _inside(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")


@torch.no_grad()
def calls(model: nn.Module, block: str, calibration: Calibration) -> list[Call]:
    """The calls of a block while the calibration passes through the model."""
    found: list[Call] = []

    def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given, named = tree_map(_detached, (args, kwargs))
        found.append(Call(given, named, floating(output)))

    handle = model.get_submodule(block).register_forward_hook(see, with_kwargs=True)
    try:
        calibration.run(model)
    finally:
        handle.remove()
    return found


def floating(output: Any) -> list[Tensor]:
    """The floating tensors among what a block gives."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _detached(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def outputs_with(module: nn.Module, weights: Mapping[str, Tensor], call: Call) -> list[Tensor]:
    """What a block gives for the arguments of a call with these weights in place of its own."""
    return floating(functional_call(module, dict(weights), call.args, call.kwargs))


def change(found: Iterable[Tensor], expected: Iterable[Tensor]) -> Tensor:
    """The mean squared difference of outputs, over what the expected ones have."""
    return sum(map(partial(_relative), found, expected))  # type: ignore[return-value]


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).square().mean() / expected.square().mean().clamp(min=1e-12)


def as_matrices(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """Numbers of the weight of that name as matrices (..., N, C), with their gradient."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return weight.mT if isinstance(owner, RoutedExperts) else weight.flatten(1)


def as_weight(model: nn.Module, name: str, matrix: Tensor) -> Tensor:
    """The inverse."""
    owner = model.get_submodule(name.rpartition(".")[0])
    shape = model.get_parameter(name).shape
    return matrix.mT if isinstance(owner, RoutedExperts) else matrix.view(shape)
