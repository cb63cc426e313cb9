"""Layers that follow one another through a ring of slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from zoo.language.block import Block
from zoo.layers.options import require_at_least
from zoo.offload.policy import Part, Slotted, use_in_turn
from zoo.offload.slots import Slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring(Slotted):
    """Part i uses slot i mod K; while it runs and after it, a thread loads those that follow."""

    slots: int | None = None
    """K; as many as the memory has room for when None."""
    keep: bool = False
    """All slots but two hold the same parts for good, the others take turns in these: less is read, and the papers do
    otherwise. No order of loading and leaving reads less with a slot to load into."""

    def __post_init__(self):
        require_at_least(1, slots=self.slots)

    def count(self, room: int) -> int:
        """See ``Slotted``."""
        return room if self.slots is None else min(room, self.slots)

    def attach(self, parts: Sequence[Part], slots: Slots) -> None:
        """See ``Slotted``."""
        use_in_turn(parts, slots, max(0, len(slots.memory) - 2) if self.keep and len(slots.memory) < len(parts) else 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TPILLM(Ring, name="tpi_llm"):
    """TPI-LLM's sliding window: attention and MLP of each block are loaded in turn, and go once they were used.

    All are read in every pass, prompt or step, unless all have room. Embedding, norms and head stay, in the paper with
    one device alone. Processes that share the model (``zoo.parallelize``) load their parts of each block; the two sums
    a block are torch's, where the paper sends them over a star of devices.

    Paper: Li et al., "TPI-LLM", arXiv 2410.00531.
    """

    paper: ClassVar[str] = "2410.00531"

    def parts(self, model: Any) -> list[Part]:
        """Mixers and MLPs; whole blocks of families that compute theirs otherwise."""
        shared = {id(parameter) for module in model.shared_modules for parameter in module.parameters()}
        seen: dict[int, int] = {}
        for block in model.blocks:
            for parameter in {id(one): one for one in block.parameters()}:
                seen[parameter] = seen.get(parameter, 0) + 1
        stays = shared | {one for one, count in seen.items() if count > 1}
        modules = [module for block in model.blocks for module in _halves(block)]
        parts = [Part(module, matrices(module, stays)) for module in modules]
        return [part for part in parts if part.names]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SEMoE(Ring, name="se_moe"):
    """SE-MoE's ring: the experts of a layer, all of them, are loaded while the layers before run; the rest stays.

    Paper: Shen et al., "SE-MoE", arXiv 2205.10034, section on ring memory offload.
    """

    paper: ClassVar[str] = "2205.10034"

    def parts(self, model: Any) -> list[Part]:
        """The experts of each layer."""
        return [Part(layer, names) for layer, names in banks(model)]


def banks(model: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """The layers of experts of a model, with the names of the experts' own parameters.

    Raises:
        ValueError: for a model without experts, or with experts that are no plain matrices.
    """
    found = []
    for layer in model.experts:
        own = {id(weight) for weight in layer.expert_parameters()}
        names = tuple(name for name, parameter in layer.named_parameters(recurse=False) if id(parameter) in own)
        if len(names) != len(own):
            raise ValueError("experts are offloaded as plain matrices, some of these are factors or compressed")
        found.append((layer, names))
    if not found:
        raise ValueError(f"{type(model).__name__} has no experts to offload: take policy='tpi_llm'")
    return found


def matrices(module: nn.Module, stays: set[int]) -> tuple[str, ...]:
    """Names of the parameters of a module, but for those that stay."""
    return tuple(name for name, parameter in module.named_parameters() if id(parameter) not in stays)


def _halves(block: nn.Module) -> list[nn.Module]:
    """What is loaded at once of a block."""
    if type(block).forward is not Block.forward:
        return [block]
    return [half for half in (block.mixer, block.mlp) if isinstance(half, nn.Module)]
