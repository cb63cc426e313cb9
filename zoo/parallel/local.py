"""Modules whose parameters are distributed, and which compute with the part that the process has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, distribute_tensor

from zoo.parallel.collectives import copied, scaled_back

ALIKE, SUMMED, MEAN, OWN_MEAN = "alike", "summed", "mean", "own mean"


class Held(NamedTuple):
    """How a process holds a parameter.

    Attributes:
        placement: of each of its sections.
        gradient: ``ALIKE``, every process finds the same, or that of its own part; ``SUMMED``, each finds a part of a
            sum; ``MEAN``, of a mean; ``OWN_MEAN``, of its own part what belongs to a sum in the place of a mean.
        sections: sizes along the first dimension of what is split by itself; none for the whole.
    """

    placement: Placement = Replicate()
    gradient: str = ALIKE
    sections: tuple[int, ...] = ()


def localize(module: nn.Module, mesh: DeviceMesh, held: Mapping[str, Held]) -> None:
    """Distribute parameters of a module itself, by name: in its ``forward`` each is then the part of this process.

    The module gets a class of its own, derived from the one it had. A parameter in sections becomes as many, called
    ``weight_part0`` and so on.
    """
    ways = dict(getattr(module, "held", {}))
    for name, how in held.items():
        parameter = module._parameters[name]
        if parameter is None or isinstance(parameter, DTensor):
            continue
        parts = [parameter.detach()] if not how.sections else parameter.detach().split(how.sections)
        spread = [
            nn.Parameter(distribute_tensor(part, mesh, [how.placement], src_data_rank=None), parameter.requires_grad)
            for part in parts
        ]
        if how.sections:
            del module._parameters[name]
            for index, part in enumerate(spread):
                module.register_parameter(part_name(name, index), part)
        else:
            module._parameters[name] = spread[0]
        ways[name] = how
    if ways:
        kind = getattr(type(module), "plain_kind", type(module))
        module.__class__ = _reading(kind, tuple(sorted(ways)))
        module.held = ways  # type: ignore[assignment]


def part_name(name: str, index: int) -> str:
    """Of a section of a parameter."""
    return f"{name}_part{index}"


@lru_cache(None)
def _reading(kind: type[nn.Module], names: Sequence[str]) -> type[nn.Module]:
    """A class of modules that find the parts of their parameters."""

    def reader(name: str) -> property:
        return property(lambda module: _read(module, name))

    return type(kind.__name__, (kind,), {**{name: reader(name) for name in names}, "plain_kind": kind})


def _read(module: Any, name: str) -> Tensor:
    how: Held = module.held[name]
    if not how.sections:
        return _part(module._parameters[name], how)
    parts = (module._parameters[part_name(name, index)] for index in range(len(how.sections)))
    return torch.cat([_part(part, how) for part in parts])


def _part(parameter: Any, how: Held) -> Tensor:
    group, part = parameter.device_mesh.get_group(), parameter.to_local()
    if how.gradient == ALIKE:
        return part
    if how.gradient == OWN_MEAN:
        return scaled_back(part, 1 / group.size())
    return copied(part, group, 1 / group.size() if how.gradient == MEAN else 1.0)


def replicate(module: nn.Module, mesh: DeviceMesh, gradient: str) -> None:
    """Every parameter that no plan has distributed: all of it in each process."""
    tied: dict[int, tuple[nn.Module, str]] = {}
    for part in list(module.modules()):
        own = {name: p for name, p in part._parameters.items() if p is not None and not isinstance(p, DTensor)}
        first = {name: tied.setdefault(id(p), (part, name)) for name, p in own.items()}
        localize(part, mesh, {name: Held(gradient=gradient) for name in own})
        for name, (other, of_other) in first.items():
            part._parameters[name] = other._parameters[of_other]


def let_go(model: nn.Module) -> None:
    """Parts of parameters have a memory of their own, not a view of the whole ones, which is then free."""
    for parameter in model.parameters():
        part = parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter
        if part.untyped_storage().nbytes() > part.nbytes:
            parameter._local_tensor = part.clone()  # type: ignore[attr-defined]


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model before ``zoo.parallelize``; every process must ask for it, and gets all of it."""
    found: dict[str, Any] = {}
    for key, tensor in model.state_dict().items():
        found[key] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    for prefix, module in model.named_modules():
        for name, how in getattr(module, "held", {}).items():
            if how.sections:
                at = f"{prefix}." if prefix else ""
                parts = [found.pop(at + part_name(name, index)) for index in range(len(how.sections))]
                found[at + name] = torch.cat(parts)
    return found
