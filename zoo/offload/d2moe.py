"""Experts in several widths: of each the planes of bits that its tokens need are loaded, the most wanted first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.kernels.moe import MoEOutput, Routing, moe
from zoo.layers.options import require_at_least
from zoo.layers.quant import LAYOUTS, Record
from zoo.offload.files import Piece
from zoo.offload.hebf import ORDERS, Plane, needs
from zoo.offload.policy import Part, Slotted, watched
from zoo.offload.slots import Slots

MATRICES = ("w1", "w3", "w2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class D2MoE(Slotted, name="d2moe"):
    r"""D2MoE's planes: of a model of ``zoo.quantize(model, "d2moe")`` an expert's codes of the fewest bits are one
    part, and each plane of signs beyond them another. A layer loads, in the order of ``hottest_first``, what the tokens
    that chose an expert need in the widths that its second router says,

    .. math:: \text{bytes} = \sum_e \sum_{k \le \max_t k_{e, t}} \text{bytes of plane } (e, k) \text{ that is not held}

    and computes the tokens of a width as soon as their planes are there. For room goes what no token of this layer
    waits for, of the layer that runs again last, its highest plane first.

    A slot has room for the largest part, so that planes leave some of theirs empty.

    Paper: "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving", arXiv 2504.15299.
    """

    paper: ClassVar[str] = "2504.15299"

    slots: int | None = None
    """Parts that are held; as many as the memory has room for when None."""
    order: str = "hottest_first"
    """In which a layer's parts are loaded; or "one_by_one", all of an expert's before those of the next."""

    def __post_init__(self):
        require_at_least(1, slots=self.slots)
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")

    def parts(self, model: Any) -> list[Part]:
        """The planes of each expert, rising.

        Raises:
            ValueError: for a model without experts in several widths.
        """
        layers = [layer for layer in model.experts if _nested(layer)]
        if not layers or len(layers) < len(model.experts):
            raise ValueError(
                f"{type(model).__name__} has no experts in several widths to offload: zoo.quantize(model, 'd2moe') "
                "makes them"
            )
        return [Part(layer, names, e) for layer in layers for e in range(layer.num_experts) for names in planes(layer)]

    def least(self, parts: Sequence[Part]) -> int:
        """A slot for each plane of an expert."""
        return self.slot(parts) * max(len(planes(part.module)) for part in parts)

    def count(self, room: int) -> int:
        """See ``Slotted``."""
        return room if self.slots is None else min(room, self.slots)

    def install(self, parts: Sequence[Part], pieces: Sequence[Sequence[Piece]], room: int) -> Slots:
        """See ``Offload``."""
        levels = max(len(planes(part.module)) for part in parts)
        if self.slots is not None and self.slots < levels:
            raise ValueError(f"slots must hold an expert's {levels} planes, got {self.slots}")
        return super().install(parts, pieces, room)

    def attach(self, parts: Sequence[Part], slots: Slots) -> None:
        """See ``Slotted``."""
        _Planes(self, parts, slots)


def _nested(layer: Any) -> bool:
    return all(isinstance(w, Record) and w.has_widths for name in MATRICES if (w := getattr(layer, name)) is not None)


def planes(layer: Any) -> list[tuple[str, ...]]:
    """Names of the tensors of each level, of all matrices of a layer of experts."""
    held: dict[str, Record] = {name: w for name in MATRICES if (w := getattr(layer, name)) is not None}
    form = held["w1"].format
    groups = [
        ("codes", "scale", "zero"),
        *((f"plane{k}", f"step{k}") for k in range(1, form.bits - form.base_bits + 1)),
    ]
    return [tuple(f"{name}.{kind}" for name in held for kind in group) for group in groups]


class _Planes:
    """Which parts are waited for, and who makes room."""

    def __init__(self, policy: D2MoE, parts: Sequence[Part], slots: Slots):
        self.slots, self.now, self.order = slots, 0, ORDERS[policy.order]
        self.names = [part.names for part in parts]
        self.layers = list({id(part.module): part.module for part in parts}.values())
        self.place = [self.layers.index(part.module) for part in parts]
        self.levels = [len(planes(layer)) for layer in self.layers]
        self.first = [self.place.index(index) for index in range(len(self.layers))]
        self.waiting: set[int] = set()
        slots.leaves = self.leaves
        for index, layer in enumerate(self.layers):
            watched(layer)
            layer.visit = MethodType(partial(_visit, self, index), layer)  # type: ignore[assignment]

    def number(self, index: int, plane: Plane) -> int:
        """Of a part: layer, expert and level."""
        return self.first[index] + plane[0] * self.levels[index] + plane[1]

    def level(self, number: int) -> int:
        """Of a part."""
        index = self.place[number]
        return (number - self.first[index]) % self.levels[index]

    def leaves(self, idle: Sequence[int]) -> int:
        """What is not waited for, of the layer whose turn comes last, its highest level."""
        count = len(self.layers)

        def worth(number: int) -> tuple[bool, int, int]:
            later = (self.place[number] - self.now) % count or count
            return number not in self.waiting, later, self.level(number)

        return max(idle, key=worth)

    def ask(self, index: int, order: Sequence[Plane]) -> None:
        """A layer will use these parts."""
        self.now, numbers = index, [self.number(index, plane) for plane in order]
        self.waiting = set(numbers)
        self.slots.traffic.late += sum(number not in self.slots.held for number in numbers)
        self.slots.announce(numbers)

    def compute(self, index: int, plane: Plane, later: Sequence[Plane], x: Tensor, weights: Tensor) -> Tensor:
        """An expert in one width of tokens (n, D), by their weights (n,); what comes later is read meanwhile."""
        layer, numbers = self.layers[index], [self.number(index, (plane[0], k)) for k in range(plane[1] + 1)]
        with ExitStack() as stack:
            held = {}
            for number in numbers:
                loaded = stack.enter_context(self.slots.used(number))
                held |= {name: t.to(x.device) for name, t in zip(self.names[number], loaded, strict=True)}
            self.waiting = {self.number(index, other) for other in later}
            self.slots.announce([self.number(index, other) for other in later])
            return _expert(layer, plane[0], held, x, weights)


class _Matrix(NamedTuple):
    """One matrix in the place of a layer's, as far as its planes are there."""

    record: Record
    tensors: Mapping[str, Tensor]

    @property
    def shape(self) -> torch.Size:
        """(1, N, C)."""
        return torch.Size((1, *self.record.shape[1:]))

    def matmul(self, x: Tensor, *, index: int) -> Tensor:
        """x (M, C) -> (M, N)."""
        return LAYOUTS[self.record.format.layout].matmul(x, self.tensors, self.record.format)


def _visit(
    planes: _Planes, index: int, layer: Any, tokens: Tensor, routing: Routing, kept: Tensor | None = None,
    capacity: int | None = None,
) -> MoEOutput:  # fmt: skip
    """``RoutedExperts.visit``, a width of an expert at a time."""
    if capacity is not None:
        raise ValueError("experts with a capacity are not offloaded: build the model with capacity_factor=None")
    if kept is not None:
        routing = routing._replace(experts=routing.experts.masked_fill(~kept[:, None], layer.num_experts))
    form = layer.w1.format
    asked = [(form.bits, routing)] if layer.precision is None else layer.precision.routings(tokens, routing)
    tasks: dict[Plane, tuple[Tensor, Tensor]] = {}
    for width, part in asked:
        for e in part.experts.unique().tolist():
            if e < layer.num_experts:
                rows, column = (part.experts == e).nonzero(as_tuple=True)
                tasks[e, width - form.base_bits] = rows, part.weights[rows, column]
    order = planes.order(needs({plane: len(rows) for plane, (rows, _) in tasks.items()}, planes.levels[index]))
    planes.ask(index, order)
    y = torch.zeros(tokens.shape, dtype=compute_dtype(tokens), device=tokens.device)
    for place, plane in enumerate(order):
        if plane in tasks:
            rows, weights = tasks[plane]
            found = planes.compute(index, plane, order[place + 1 :], tokens[rows], weights)
            y.index_add_(0, rows, found.to(y.dtype))
    return MoEOutput(y.to(tokens.dtype), routing.experts.new_zeros(()))


def _expert(layer: Any, e: int, held: Mapping[str, Tensor], x: Tensor, weights: Tensor) -> Tensor:
    routing = Routing(weights[:, None], torch.zeros(len(x), 1, dtype=torch.int64, device=x.device), weights[:, None])
    made: dict[str, Any] = {
        name: _Matrix(record, {key.partition(".")[2]: t for key, t in held.items() if key.startswith(f"{name}.")})
        for name in MATRICES
        if (record := getattr(layer, name)) is not None
    }
    b1, b2, b3 = (None if b is None else b[e][None] for b in (layer.b1, layer.b2, layer.b3))
    options: dict[str, Any] = {"activation": layer.act, "glu": layer.glu, "down_bias": b2}
    if "w3" not in made:
        return moe(x, routing, made["w1"], made["w2"], up_bias=b1, **options).output
    return moe(x, routing, made["w3"], made["w2"], gate=made["w1"], up_bias=b3, gate_bias=b1, **options).output
