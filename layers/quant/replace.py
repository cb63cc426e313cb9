"""Which weights of a model can be records, and records in their place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo.layers.linear import HeldLinear
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.moe.latent import LatentMatrix
from zoo.layers.quant.format import Format
from zoo.layers.quant.frozen import refuse_backward
from zoo.layers.quant.layers import Conv, Embedding, Linear
from zoo.layers.quant.record import Record
from zoo.layers.quant.times import Clock

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # no subclass: those have rules of their own


def compressible(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that may become records, by name: of linear layers, embeddings, experts and convolutions.

    Layers that are more than a product, routers that compute in float32 for one, are left as they are, and so are
    depthwise convolutions, whose rows are a few taps, and what recurrences keep. Of tied weights each name is there.
    """
    found: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in _names(module):
            weight = _held(module, name)
            if type(weight) is nn.Parameter:
                found[f"{prefix}.{name}" if prefix else name] = weight
    return found


def occupied(model: nn.Module) -> dict[str, str]:
    """What stands where ``compressible`` would look for weights, by name: parametrisations, matrices without their
    zeros, tensors that are computed; records and experts' factors, which stay as they are, apart."""
    found: dict[str, str] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in ("weight",) if isinstance(module, HeldLinear) else _names(module):
            held = _held(module, name)
            if type(held) is not nn.Parameter and not isinstance(held, (Record, LatentMatrix)):
                inside = held[0] if isinstance(held, parametrize.ParametrizationList) else held
                found[f"{prefix}.{name}" if prefix else name] = type(inside).__name__
    return found


def require_plain(model: nn.Module, what: str, skip: Collection[str] = ()) -> None:
    """Raise a ValueError for a model that computes its weights, or keeps them otherwise, which ``what`` would pass over
    in silence; those that the patterns of ``skip`` name may."""
    there = {name: kind for name, kind in occupied(model).items() if not any(fnmatchcase(name, p) for p in skip)}
    if there:
        name, kind = next(iter(there.items()))
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise ValueError(
            f"{what} takes plain weights, {name} is kept as {kind}{more}: "
            "take the model that it was made from, or end that first, as zoo.settle or remove_parametrizations do"
        )


def matrices(model: nn.Module, name: str) -> Tensor:
    """The weight of that name as matrices (..., N, C), a row for each output: those of experts lie the other way, and a
    row of a convolution's are its taps."""
    module, attribute = _place(model, name)
    weight = getattr(module, attribute).detach()
    return weight.mT if isinstance(module, RoutedExperts) else weight.flatten(1) if weight.dim() > 2 else weight


@torch.no_grad()
def set_matrices(model: nn.Module, name: str, found: Tensor) -> None:
    """Give the weight of that name the numbers of matrices (..., N, C), as ``matrices`` has them."""
    module, attribute = _place(model, name)
    weight = getattr(module, attribute)
    numbers = found.mT if isinstance(module, RoutedExperts) else found.view(weight.shape)
    weight.data = numbers.to(weight)


def is_product(model: nn.Module, name: str) -> bool:
    """Whether the weight of that name multiplies tokens, each of which may have a scale of its own."""
    return not isinstance(_place(model, name)[0], CONVS)


def install(model: nn.Module, given: Mapping[str, Record | Format]) -> None:
    """Put records in the place of weights, in place: those given, or empty ones of a format.

    Tied weights become one record. Who trains the model as if they could learn gets an error, see ``refuse_backward``.

    Raises:
        ValueError: for a name that is none of ``compressible``.
    """
    weights, made = compressible(model), {}
    if unknown := [name for name in given if name not in weights]:
        raise ValueError(f"no weights that can be compressed: {', '.join(unknown[:5])}; see zoo.layers.quant")
    for name, found in given.items():
        weight = weights[name]
        if id(weight) not in made:
            shape = matrices(model, name).shape
            with weight.device:
                made[id(weight)] = weight, found if isinstance(found, Record) else Record(shape, found)
        _put(model, name, made[id(weight)][1])
    if given:
        refuse_backward(model)
    timed = [record for _, record in made.values() if record.format.inputs.times]
    if timed:
        clock = Clock.of(model)
        for record in timed:
            record.clock = clock


def records(model: nn.Module) -> dict[str, Record]:
    """The records of a model, by the name of the weight in whose place they are; a shared one by all its names."""
    return {name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, Record)}


def _names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, RoutedExperts):
        return ("w1", "w3", "w2") if module.w3 is not None else ("w1", "w2")
    known: Any = module
    kind = parametrize.type_before_parametrizations(module)
    if kind in CONVS:
        depthwise = 1 < known.groups == known.in_channels
        return ("weight",) if known.padding_mode == "zeros" and not depthwise else ()
    return ("weight",) if kind in (nn.Linear, nn.Embedding) else ()


def _held(module: nn.Module, name: str) -> Any:
    """What a module keeps a weight as; a parametrised one is not computed."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name]  # type: ignore[index]
    return getattr(module, name)


def _put(model: nn.Module, name: str, record: Record) -> None:
    module, attribute = _place(model, name)
    if isinstance(module, RoutedExperts):
        delattr(module, attribute)
        module.add_module(attribute, record)
        return
    layer = _layer(module, record)
    parent, child = _place(model, name.rpartition(".")[0])
    setattr(parent, child, layer.train(module.training))


def _layer(module: nn.Module, record: Record) -> nn.Module:
    if isinstance(module, nn.Linear):
        return Linear(record, module.bias)
    if isinstance(module, CONVS):
        return Conv(record, module)
    return Embedding(record, module.weight)  # type: ignore[arg-type]


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, child = name.rpartition(".")
    return model.get_submodule(parent), child
