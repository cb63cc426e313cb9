"""OmniQuant: clipping and equivalent factors that learn, a block after another."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.layers.quant import Format, Record, matrices, set_matrices
from zoo.layers.quant.layouts.layout import SCALES, in_groups
from zoo.quantize.blocks import Call, as_matrices, as_weight, blocks, calls, change, outputs_with
from zoo.quantize.calibration import Calibration, largest_inputs
from zoo.quantize.equivalences import Equivalence, equivalences
from zoo.quantize.method import Method
from zoo.quantize.rounding import nearest_codes
from zoo.quantize.store import Store

FIRST = 4.0  # whose sigmoid is how much of a range is kept at first
SMALLEST = 1e-5  # of a weight or an activation

Learnt = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OmniQuant(Method, name="omniquant", calibrated=True):
    r"""Learn how much of each group's range is kept, and factors between layers, so that each block gives what it gave.

    .. math::
        \max' = \sigma(\gamma) \max(w, 0), \; \min' = \sigma(\beta) \min(w, 0)

    and with c between a norm and the matrices that read it, or the values and the output of attention:
    :math:`W \mathrm{diag}(c)` is rounded. Queries and keys are scaled where rows share scales (``group_rows``);
    otherwise their factors would pass through the scale of the row. Factors are tied over channels that turn together
    and over queries that share keys and values. A block's inputs come from the blocks before it as they are rounded,
    its outputs from the float model; of what it learns, and of plain rounding, the best on the calibration is kept.
    Ranges of experts and convolutions within blocks learn as well; embeddings and heads are rounded plainly.

    Paper: Shao et al., "OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models", arXiv
    2308.13137. Its untied factors of queries and keys do not commute with rotary positions.
    """

    epochs: int = 10
    """Passes over the calibration for each block."""
    clip_lr: float = 0.1
    """Learning rate of what is kept of the ranges; a tenth of it in the paper, in many more steps."""
    factor_lr: float = 0.02
    """Learning rate of the factors; a quarter of it there."""
    factors: bool = True
    """Learn factors at all."""

    def __post_init__(self):
        super().__post_init__()
        if self.epochs < 0 or min(self.clip_lr, self.factor_lr) <= 0:
            raise ValueError(
                f"epochs must be at least 0 and rates above 0, got {self.epochs}, {self.clip_lr} and {self.factor_lr}"
            )

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """Learn block by block, scale the model by the factors: what is kept of the ranges, low and high."""
        assert calibration is not None
        parts = blocks(model, names)
        linears = [n.removesuffix(".weight") for n in names if type(_owner(model, n)) is nn.Linear]
        found = equivalences(model, linears, calibration, queries=self.group_rows > 1) if self.factors else []
        read = {p.name.removesuffix(".weight") for one in found for p in one.parts if p.axis == 1}
        store.expect(bool(read) + len(parts))
        largest = store.once("largest inputs", lambda: largest_inputs(model, sorted(read), calibration)) if read else {}
        student = copy.deepcopy(model)  # its blocks are rounded one after another
        known: dict[str, Any] = {}
        for block, inside in parts.items():
            within = [one for one in found if one.inside(block)]

            def learn(block: str = block, inside: list[str] = inside, within: list[Equivalence] = within) -> Learnt:
                given = calls(student, block, calibration)
                wanted = calls(model, block, calibration)
                return Block(self, model, block, inside, within, largest, given, wanted).learn()

            learnt = store.once(f"block {block}", learn)
            for index, one in enumerate(within):
                if f"c.{index}" in learnt:
                    for each in (model, student):
                        one.apply(each, learnt[f"c.{index}"])
            for name in inside:
                known[name] = learnt.get(f"low.{name}"), learnt.get(f"high.{name}")
                matrix = matrices(model, name).float()
                set_matrices(
                    student, name, self.record(matrix, self.format(matrix.shape[-1]), known[name]).dequantise()
                )
        return known

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The nearest codes within what is kept of each group's range."""
        grid = clipped_grid(matrix, form, *(known or ()))
        return nearest_codes(matrix, grid.scale, grid.zero, form)


class Block:
    """What one block learns: of each weight what is kept of the ranges of its groups, and the logarithms of factors."""

    def __init__(
        self,
        method: OmniQuant,
        model: nn.Module,
        name: str,
        inside: Sequence[str],
        equivalences: Sequence[Equivalence],
        largest: Mapping[str, Tensor],
        given: list[Call],
        wanted: list[Call],
    ):
        self.method, self.model, self.name, self.inside = method, model, name, inside
        self.equivalences, self.given, self.wanted = equivalences, given, wanted
        self.clips: dict[str, Tensor] = {}
        for weight in inside:
            matrix = matrices(model, weight)
            groups = method.format(matrix.shape[-1]).groups(matrix.shape[-1])
            for side in ("low", "high"):
                self.clips[f"{side}.{weight}"] = matrix.new_full((*matrix.shape[:-1], groups), FIRST)
        starts = [torch.zeros_like, lambda c: c]  # the better of no factors and those of SmoothQuant
        logs = {f"c.{index}": first_factors(model, one, largest).log() for index, one in enumerate(equivalences)}
        choices = [{key: start(c) for key, c in logs.items()} for start in starts]
        self.logs: dict[str, Tensor] = min(choices, key=lambda logs: self.loss(_used(self.clips, logs)))

    def learn(self) -> Learnt:
        """The best of plain rounding and all epochs, the start among them; nothing where it is plain rounding."""
        best, least = {}, self.loss({})
        with torch.enable_grad():
            clips, logs = ([value.requires_grad_() for value in held.values()] for held in (self.clips, self.logs))
            rates = (clips, self.method.clip_lr), (logs, self.method.factor_lr)
            learning = [{"params": held, "lr": rate} for held, rate in rates if held]
            optimizer = torch.optim.AdamW(learning, weight_decay=0.0)
            for epoch in range(self.method.epochs + 1):
                for given, wanted in zip(self.given, self.wanted, strict=True) if epoch else ():
                    optimizer.zero_grad()
                    loss = self.difference(given, wanted, self.weights(_used(self.clips, self.logs)))
                    loss.backward(inputs=[*clips, *logs])
                    optimizer.step()
                values = {key: value.detach() for key, value in _used(self.clips, self.logs).items()}
                if (found := self.loss(values)) < least:
                    best, least = values, found
        return best

    def weights(self, values: Learnt) -> dict[str, Tensor]:
        """The block's parameters, scaled and rounded, by their names within it."""
        held = {name: p.detach() for name, p in self.model.named_parameters(remove_duplicate=False)}
        found: dict[str, Tensor] = {}
        for index, one in enumerate(self.equivalences):
            if f"c.{index}" in values:
                found |= one.scaled({**held, **found}, values[f"c.{index}"])
        for name in self.inside:
            matrix = as_matrices(self.model, name, found.get(name, held[name]))
            form = self.method.format(matrix.shape[-1])
            grid = clipped_grid(matrix, form, values.get(f"low.{name}"), values.get(f"high.{name}"))
            found[name] = as_weight(self.model, name, rounded(matrix, grid, form))
        return {name.removeprefix(f"{self.name}."): weight for name, weight in found.items()}

    def difference(self, given: Call, wanted: Call, weights: Mapping[str, Tensor]) -> Tensor:
        """Of one call."""
        return change(outputs_with(self.model.get_submodule(self.name), weights, given), wanted.outputs)

    @torch.no_grad()
    def loss(self, values: Learnt) -> float:
        """Of the whole calibration; of nothing learnt that of plain rounding."""
        weights = self.weights(values)
        pairs = zip(self.given, self.wanted, strict=True)
        return sum(self.difference(given, wanted, weights).item() for given, wanted in pairs)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _used(clips: Learnt, logs: Learnt) -> Learnt:
    """What is learnt as it is used: shares of ranges, and factors."""
    return {key: value.sigmoid() for key, value in clips.items()} | {key: value.exp() for key, value in logs.items()}


def first_factors(model: nn.Module, one: Equivalence, largest: Mapping[str, Tensor]) -> Tensor:
    r"""SmoothQuant's :math:`c = \sqrt{\max |X| / \max |W|}` of what is read, with a mean logarithm of 0; 1 where no
    matrix reads."""
    x, w = (model.get_parameter(one.parts[0].name).new_full((one.size,), SMALLEST) for _ in range(2))
    for part in one.parts:
        if part.axis == 1:
            read, weight = largest[part.name.removesuffix(".weight")], model.get_parameter(part.name)
            x.scatter_reduce_(0, part.place, read.to(x), "amax")
            w.scatter_reduce_(0, part.place, weight.detach().abs().amax(0), "amax")
    c = (x / w).log() / 2
    return (c - c.mean()).exp()


class Grid(NamedTuple):
    """Scales as they are stored and zeros, None if symmetric, (..., N, G), and both with the gradient of the shares."""

    scale: Tensor
    zero: Tensor | None
    step: Tensor
    centre: Tensor | int


def clipped_grid(matrix: Tensor, form: Format, low: Tensor | None = None, high: Tensor | None = None) -> Grid:
    """Of what is kept of the range of each group of a matrix (..., N, C): shares (..., N, G), None for all."""
    groups = in_groups(matrix, form)
    top = form.over_rows(groups.amax(-1).clamp(min=0) * (1 if high is None else high))
    bottom = form.over_rows(-groups.amin(-1).clamp(max=0) * (1 if low is None else low))
    span = 2 * torch.maximum(top, bottom) if form.symmetric else top + bottom
    exact = span / max(2**form.bits - (2 if form.symmetric else 1), 1)
    exact = torch.where(exact > 0, exact, torch.ones_like(exact))
    scale = exact.detach().to(SCALES[form.scale_dtype])
    step = _straight(exact, scale.to(exact))
    if form.symmetric:
        return Grid(scale, None, step, 2 ** (form.bits - 1))
    place = bottom / step
    zero = place.detach().round().clamp(0, 2**form.bits - 1)
    return Grid(scale, zero.to(torch.uint8), step, _straight(place, zero))


def _straight(exact: Tensor, found: Tensor) -> Tensor:
    """The second, with the gradient of the first."""
    return exact + (found - exact).detach()


def rounded(matrix: Tensor, grid: Grid, form: Format) -> Tensor:
    """What the nearest codes stand for; gradients pass straight through rounding, and stop at the ends of the range."""
    step = grid.step[..., None]
    centre = grid.centre if isinstance(grid.centre, int) else grid.centre[..., None]
    v = in_groups(matrix, form) / step
    q = (_straight(v, v.round()) + centre).clamp(0, 2**form.bits - 1)
    return ((q - centre) * step).flatten(-2)
