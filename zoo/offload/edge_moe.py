"""Experts one by one, loaded when a router asks for them, or before by what it asked for last time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.moe import MoEOutput, Routing, moe
from zoo.layers.options import require_at_least
from zoo.offload.policy import Part, Slotted, watched
from zoo.offload.ring import banks
from zoo.offload.slots import Slots

KNOWN = 1 << 12  # keys that are remembered with what followed


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeMoE(Slotted, name="edge_moe"):
    r"""EdgeMoE's buffer of experts: those that tokens choose are loaded, and those that will probably be are before.

    What a layer will want is looked up by the experts that the ``memory`` layers before it were asked for, among what
    followed these so far (4096 such are remembered, those met last); the ``ahead`` most frequent are loaded. A wrong
    guess costs time, nothing else. For room the expert e of layer i goes that has the least

    .. math:: f_{i, e} / d_i, \quad d_i = (i - I) \bmod L, \text{ or } L \text{ for } 0

    with f how often it was used and d how many layers run before it may be used again, after layer I. (The paper's
    formula has the layers since, and evicts what runs next, unlike its text.) Experts keep their precision: the paper
    also stores the less important ones in fewer bits, see ``zoo.quantize``.

    Paper: Yi et al., "EdgeMoE", arXiv 2308.14352.
    """

    paper: ClassVar[str] = "2308.14352"

    slots: int | None = None
    """Experts that are held; as many as the memory has room for when None."""
    ahead: int = 2
    """Experts that are loaded before a router has asked; 0 for none."""
    memory: int = 2
    """Layers that the guess looks back."""

    def __post_init__(self):
        require_at_least(1, slots=self.slots, memory=self.memory)
        require_at_least(0, ahead=self.ahead)

    def parts(self, model: Any) -> list[Part]:
        """The experts."""
        return [Part(layer, names, e) for layer, names in banks(model) for e in range(layer.num_experts)]

    def count(self, room: int) -> int:
        """See ``Slotted``."""
        return room if self.slots is None else min(room, self.slots)

    def attach(self, parts: Sequence[Part], slots: Slots) -> None:
        """See ``Slotted``."""
        _Buffer(self, parts, slots)


class _Buffer:
    """What was asked for so far, and the layers that ask."""

    def __init__(self, policy: EdgeMoE, parts: Sequence[Part], slots: Slots):
        self.policy, self.slots, self.now = policy, slots, 0
        self.layers = list({id(part.module): part.module for part in parts}.values())
        self.first, self.layer_of = [], [0] * len(parts)  # number of a layer's first expert; layer of an expert
        for index, layer in enumerate(self.layers):
            mine = [number for number, part in enumerate(parts) if part.module is layer]
            self.first.append(mine[0])
            for number in mine:
                self.layer_of[number] = index
        self.names = [part.names for part in parts]
        self.uses: Counter[int] = Counter()
        self.followed: dict[tuple[frozenset[int], ...], Counter[int]] = {}  # the last met is last
        self.asked: list[frozenset[int]] = []
        slots.leaves = self.leaves
        for index, layer in enumerate(self.layers):
            watched(layer)
            layer.visit = MethodType(partial(_visit, self, index), layer)  # type: ignore[assignment]

    def leaves(self, idle: Sequence[int]) -> int:
        """The expert of least use, by how soon it may be used again."""
        count = len(self.layers)

        def worth(number: int) -> float:
            return self.uses[number] / ((self.layer_of[number] - self.now) % count or count)

        return min(idle, key=worth)

    def ask(self, index: int, wanted: Sequence[int]) -> None:
        """A layer's router has chosen experts: load them, and learn."""
        self.now = index
        key = self.key()
        self.followed[key] = known = self.followed.pop(key, Counter())
        known.update(wanted)
        if len(self.followed) > KNOWN:
            del self.followed[next(iter(self.followed))]
        self.uses.update(wanted)
        self.asked = [*self.asked, frozenset(wanted)][-self.policy.memory :]
        self.slots.traffic.late += sum(number not in self.slots.held for number in wanted)
        self.slots.announce(wanted)

    def guess(self, wanted: Sequence[int]) -> None:
        """While a layer computes with the last of the experts, those of the next one are loaded."""
        probable = [number for number, _ in self.followed.get(self.key(), Counter()).most_common(self.policy.ahead)]
        self.slots.announce([*wanted, *probable])

    def key(self) -> tuple[frozenset[int], ...]:
        """What the guess is looked up by."""
        return tuple(self.asked)


def _visit(
    buffer: _Buffer, index: int, layer: Any, tokens: Tensor, routing: Routing, kept: Tensor | None = None,
    capacity: int | None = None,
) -> MoEOutput:  # fmt: skip
    """``RoutedExperts.visit``, an expert at a time."""
    if capacity is not None:
        raise ValueError("experts with a capacity are not offloaded: build the model with capacity_factor=None")
    chosen = routing.experts if kept is None else routing.experts.masked_fill(~kept[:, None], layer.num_experts)
    wanted = [buffer.first[index] + e for e in chosen.unique().tolist() if e < layer.num_experts]
    buffer.ask(index, wanted)
    y = torch.zeros(tokens.shape, dtype=compute_dtype(tokens), device=tokens.device)
    for place, number in enumerate(wanted):
        rows, column = (chosen == number - buffer.first[index]).nonzero(as_tuple=True)
        with buffer.slots.used(number) as held:
            buffer.guess(wanted[place + 1 :])
            own = {
                name: tensor.to(tokens.device)[None] for name, tensor in zip(buffer.names[number], held, strict=True)
            }
            y.index_add_(0, rows, _expert(layer, own, tokens[rows], routing.weights[rows, column]).to(y.dtype))
    return MoEOutput(y.to(tokens.dtype), chosen.new_zeros(()))


def _expert(layer: Any, own: dict[str, Tensor], x: Tensor, weights: Tensor) -> Tensor:
    """One expert (1, ...) of tokens (n, D) by their weights (n,)."""
    routing = Routing(weights[:, None], torch.zeros(len(x), 1, dtype=torch.int64, device=x.device), weights[:, None])
    options = {"activation": layer.act, "glu": layer.glu, "down_bias": own.get("b2")}
    if "w3" not in own:
        return moe(x, routing, own["w1"], own["w2"], up_bias=own.get("b1"), **options).output
    biases = {"up_bias": own.get("b3"), "gate_bias": own.get("b1")}
    return moe(x, routing, own["w3"], own["w2"], gate=own["w1"], **biases, **options).output
