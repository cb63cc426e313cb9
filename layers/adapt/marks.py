"""Which modules of a model are an adapter's, and what their parts were called before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HELD = ("_parameters", "_buffers", "_modules")


class Mark(NamedTuple):
    """What an adapter writes on a module that it puts into a model, as ``module.adapter``.

    Attributes:
        kind: of the adapter.
        inner: the child that is the module in whose place it stands; None where the names of its parts are as before.
    """

    kind: str
    inner: str | None = None


def placed(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of all that adapters have put into a model."""
    return {name: module for name, module in model.named_modules() if mark_of(module) is not None}


def mark_of(module: Any) -> Mark | None:
    """An adapter's mark on a module; None on another one."""
    found = getattr(module, "adapter", None)
    return found if isinstance(found, Mark) else None


def before(model: nn.Module, name: str) -> str:
    """The name that a module, a parameter or a buffer had before adapters came: "q_proj.base_layer.weight" was
    "q_proj.weight"."""
    parts, module = [], model
    for part in name.split("."):
        mark = mark_of(module)
        if mark is None or part != mark.inner:
            parts.append(part)
        module = getattr(module, part, None)
    return ".".join(parts)


def require_unadapted(model: nn.Module, what: str) -> None:
    """Raise a ValueError for a model with adapters, which ``what`` comes before."""
    if there := sorted({mark.kind for module in model.modules() if (mark := mark_of(module)) is not None}):
        raise ValueError(f"{what} comes before adapters, the model has {', '.join(there)}: zoo.merge_adapter first")


@contextmanager
def undone_on_failure(model: nn.Module) -> Iterator[None]:
    """Where what is within it fails, a model has its modules, attributes, frozen parameters and the tensors of all of
    them of before again; numbers that were written in place stay."""
    kept = [(module, vars(module) | {part: dict(vars(module)[part]) for part in HELD}) for module in model.modules()]
    learning = [(parameter, parameter.requires_grad, parameter.data) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, attributes in kept:
            vars(module).clear()
            vars(module).update(attributes)
        for parameter, learns, data in learning:
            parameter.data = data
            parameter.requires_grad_(learns)
        raise


def device_of(like: Tensor) -> torch.device:
    """Where what is new beside a tensor belongs; beside one without memory, whose numbers may be on their way, where a
    model is being built."""
    return torch.get_default_device() if like.is_meta else like.device


def put(model: nn.Module, made: Mapping[str, nn.Module]) -> None:
    """Put modules in the place of those of that name, wherever the model has them."""
    new = {id(model.get_submodule(name)): module for name, module in made.items()}
    parents = {id(parent): parent for root in (model, *made.values()) for parent in root.modules()}
    for parent in parents.values():
        for child, module in list(parent._modules.items()):
            if id(module) in new and new[id(module)] is not parent:  # which may hold what it replaces
                setattr(parent, child, new[id(module)])
