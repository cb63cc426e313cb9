"""Q-Diffusion: learnt rounding on inputs of all times, and a grid for each half of what a U-Net joins."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.quant import Format, Record, matrices, set_matrices
from zoo.layers.quant.inputs import Inputs
from zoo.layers.quant.layouts import nearest
from zoo.quantize.blocks import Call, as_weight, calls, change, outputs_with
from zoo.quantize.calibration import Calibration, model_outputs
from zoo.quantize.lowbit_fp import SHARPEST, SOFTEST, STRETCH, exact_codes, integer_levels, opened
from zoo.quantize.method import Method
from zoo.quantize.rounding import grid
from zoo.quantize.static_inputs import input_grid, seen_inputs, with_inputs
from zoo.quantize.store import Store
from zoo.quantize.units import units

PENALTY = 1000.0  # of roundings that are undecided, on average, beside an error of 1 at the start


@dataclasses.dataclass(frozen=True, kw_only=True)
class QDiffusion(Method, name="q_diffusion", calibrated=True):
    r"""Learn which way each weight is rounded, unit by unit, on what the model is called with at all times of drawing.

    .. math::
        \hat w = s \big( \lfloor w / s \rfloor + h(a) \big), \quad h(a) = \mathrm{clamp}(1.2 \, \sigma(a) - 0.1, 0, 1)

    with a such that at first :math:`\hat w = w`, for the least change of what a unit gives (``units``) on inputs from
    the units before it as they are rounded; a penalty of undecided h, of an exponent from 20 down to 2, closes them.
    Of the learnt rounding and the nearest the one with the smaller error is kept, of each unit, and in the end of all
    together. With ``activation_bits`` every linear
    layer and convolution then gets a stored scale and zero of its inputs, of the share of their range that leaves the
    least error of power 2.4. Where a U-Net joins what goes up and what it kept of the way down, both have their own
    scales, of inputs and of the matrix: the convolution around the residual block reads them as they are.

    ``calibration`` is ``Calibration.of_samples(model)``, where none is given that of 64 images in 20 steps. A row of a
    matrix has one scale, where no ``group_size`` says otherwise. Scales of inputs do not learn here.

    Paper: Li et al., "Q-Diffusion: Quantizing Diffusion Models", arXiv 2302.04304, sections 3.2 and 3.3; rounding:
    Nagel et al., "Up or Down?", arXiv 2004.10568.
    """

    steps: int = 100
    """Of Adam, for each unit; 20,000 in the paper."""
    lr: float = 0.01
    """Of Adam."""
    split: bool = True
    """A grid for each half of what is joined."""
    search: bool = True
    """Choose shares of the ranges of inputs; False: all of them."""
    seed: int = 0
    """Of the order of batches."""

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 0 or self.lr <= 0:
            raise ValueError(f"steps must be at least 0 and lr above 0, got {self.steps} and {self.lr}")
        if self.group_rows != 1:
            raise ValueError(f"q_diffusion finds codes for each row: group_rows must be 1, got {self.group_rows}")

    def format(self, columns: int) -> Format:
        """A row is a group where no size is asked for."""
        return row_format(super().format(columns), self.group_size)

    def check(self, model: nn.Module) -> None:
        """Refuse what draws nothing in steps."""
        require_diffusion(model, "q_diffusion")

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """Learn the codes unit by unit, then find the grids of inputs."""
        assert calibration is not None
        found = units(model, names, calibration)
        store.expect(len(found) + (self.steps > 0) + (self.activation_bits is not None))
        parts = self._parts(model, names)
        student = copy.deepcopy(model)  # its units are rounded one after another
        known: dict[str, Any] = {}
        for unit, inside in found.items():
            learning = [name for name in inside if name.removesuffix(".weight") in parts]

            def learn(unit: str = unit, learning: list[str] = learning) -> dict[str, Tensor]:
                given, wanted = (calls(each, unit, calibration) if self.steps else [] for each in (student, model))
                return Unit(self, model, unit, {name: parts[name.removesuffix(".weight")] for name in learning},
                            given, wanted).learn()  # fmt: skip

            codes = store.once(f"unit {unit}", learn)
            for name in learning:
                known[name] = {"parts": parts[name.removesuffix(".weight")], "codes": codes[name]}
                set_matrices(student, name, self._weights(matrices(model, name).float(), known[name]).dequantise())
        if self.steps:
            self._keep_better(model, student, known, calibration, store)
        if self.activation_bits is not None:
            layers = {name.removesuffix(".weight"): held["parts"] for name, held in known.items()}
            grids = store.once("inputs", lambda: self._grids(student, layers, calibration, self.activation_bits or 8))
            for name, held in known.items():
                place = name.removesuffix(".weight")
                held["grid"] = {key: grids[f"{place}.{key}"] for key in ("input_scale", "input_zero")}
        return known

    def _keep_better(
        self, model: nn.Module, student: nn.Module, known: Mapping[str, Any], calibration: Calibration, store: Store
    ) -> None:
        """Take the nearest codes everywhere where these change the model's outputs less than all that was learnt."""
        plain = {}
        for name, held in known.items():
            matrix = matrices(model, name).float()
            form, scale, zero = start(self, matrix, held["parts"])
            plain[name] = nearest(matrix, scale, zero, form)

        def compared() -> dict[str, Tensor]:
            expected, other = model_outputs(model, calibration), copy.deepcopy(model)
            for name, codes in plain.items():
                rounded = self._weights(matrices(model, name).float(), {**known[name], "codes": codes})
                set_matrices(other, name, rounded.dequantise())
            return {
                key: (model_outputs(each, calibration) - expected).square().mean()
                for key, each in (("learnt", student), ("nearest", other))
            }

        losses = store.once("all units", compared)
        if losses["nearest"] < losses["learnt"]:
            for name, codes in plain.items():
                known[name]["codes"] = codes
                set_matrices(student, name, self._weights(matrices(model, name).float(), known[name]).dequantise())

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The learnt codes, and the grid of the inputs; the nearest codes of what is no product."""
        if known is None:
            return Record.nearest(matrix, dataclasses.replace(form, activation_bits=None))
        record = self._weights(matrix, known)
        if self.activation_bits is None:
            return record
        return with_inputs(record, Inputs(parts=known["parts"]), self.activation_bits, known["grid"])

    def _weights(self, matrix: Tensor, known: Mapping[str, Any]) -> Record:
        form, scale, zero = start(self, matrix, known["parts"])
        return Record.of(known["codes"], scale, zero, form)

    def _parts(self, model: nn.Module, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Name of a linear layer or convolution -> channels of the slices of its inputs."""
        places = {name.removesuffix(".weight"): model.get_submodule(name.rpartition(".")[0]) for name in names}
        found = {name: (channels(module),) for name, module in places.items() if not isinstance(module, nn.Embedding)}
        return found | {name: both for name, both in joined(model).items() if name in found and self.split}

    def _grids(
        self, student: nn.Module, layers: Mapping[str, Sequence[int]], calibration: Calibration, bits: int
    ) -> dict[str, Tensor]:
        seen = seen_inputs(student, layers, calibration, {})
        grids = {name: input_grid(numbers, bits, self.search) for name, numbers in seen.items()}
        return {f"{name}.{key}": tensor for name, grid in grids.items() for key, tensor in grid.items()}


def row_format(found: Format, group_size: int | None) -> Format:
    """With a scale a row where no size of groups was asked for."""
    return found if group_size is not None else dataclasses.replace(found, group_size=None)


def require_diffusion(model: nn.Module, method: str) -> None:
    """Raise a ValueError for a model that is not called with images, times and classes."""
    if not hasattr(model, "guided"):
        raise ValueError(f"{method} takes a diffusion model, such as dit_nano, got {type(model).__name__}")


def channels(module: Any) -> int:
    """Of the inputs of a linear layer or convolution: those of one group."""
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


def joined(model: Any) -> dict[str, tuple[int, int]]:
    """Of a U-Net: name of a convolution that reads what goes up and what was kept -> channels of both. The others
    behind a norm of both read no such sides."""
    if not hasattr(model, "decoder_blocks"):
        return {}
    kept, found = model.skip_dims(), {}
    for name, block in model.decoder_blocks():
        skip = kept.pop()
        if isinstance(block.conv_shortcut, nn.Conv2d):
            found[f"{name}.conv_shortcut"] = (block.conv_shortcut.in_channels - skip, skip)
    return found


def start(method: Method, matrix: Tensor, parts: Sequence[int]) -> tuple[Format, Tensor, Tensor | None]:
    """Format, scales and zeros of a matrix (N, C) whose columns are of slices of channels: no group has two."""
    form = dataclasses.replace(method.format(matrix.shape[-1]), activation_bits=None)
    if len(parts) == 1:
        return (form, *grid(matrix, form))
    taps = matrix.shape[-1] // sum(parts)
    sizes = [taps * part for part in parts]
    size = math.gcd(form.group_size or matrix.shape[-1], *sizes)
    found = [
        grid(part, dataclasses.replace(form, group_size=form.group_size and size)) for part in matrix.split(sizes, -1)
    ]
    scale, zero = (
        None
        if side[0] is None
        else torch.cat([_over(each, part // size) for each, part in zip(side, sizes, strict=True)], -1)
        for side in zip(*found, strict=True)
    )
    assert scale is not None
    return dataclasses.replace(form, group_size=size), scale, zero


def _over(blocks: Tensor, groups: int) -> Tensor:
    """(N, 1) or (N, groups) as (N, groups)."""
    return blocks.expand(-1, groups)


class Unit:
    """What one unit learns: for each of its weights which way to round.

    Args:
        parts: name of a weight -> slices of the channels of its inputs.
        given: calls with what the rounded model gives it.
        wanted: what the float model gives.
    """

    def __init__(
        self, method: QDiffusion, model: nn.Module, name: str, parts: Mapping[str, Sequence[int]], given: list[Call],
        wanted: list[Call],
    ):  # fmt: skip
        self.method, self.model, self.name, self.given, self.wanted = method, model, name, given, wanted
        self.grids = {weight: start(method, matrices(model, weight).float(), held) for weight, held in parts.items()}
        self.levels = {
            weight: integer_levels(matrices(model, weight).float(), scale, zero, form)
            for weight, (form, scale, zero) in self.grids.items()
        }

    def learn(self) -> dict[str, Tensor]:
        """Name of a weight -> codes (N, C), the best of the nearest and those that were learnt."""
        found = {weight: levels[0] for weight, levels in self.levels.items()}
        if self.method.steps and (least := self.loss(found)) > 0:
            hard = self._learnt(least / len(self.given))
            found = hard if self.loss(hard) < least else found
        return {
            weight: exact_codes(numbers, self.grids[weight][1], self.grids[weight][2], self.grids[weight][0]).unpacked()
            for weight, numbers in found.items()
        }

    def _learnt(self, first: float) -> dict[str, Tensor]:
        soft = {weight: self.first(weight) for weight in self.levels}
        generator, steps = torch.Generator().manual_seed(self.method.seed), self.method.steps
        with torch.enable_grad():
            for value in soft.values():
                value.requires_grad_()
            optimizer = torch.optim.Adam(soft.values(), lr=self.method.lr)
            for step in range(steps):
                index = int(torch.randint(len(self.given), (1,), generator=generator))
                held = {weight: opened(value) for weight, value in soft.items()}
                error = self.difference(index, {weight: self.between(weight, h) for weight, h in held.items()}) / first
                done = step / max(1, steps - 1)
                beta = SOFTEST + (SHARPEST - SOFTEST) * done
                undecided = torch.stack([1 - (2 * h - 1).abs().pow(beta).mean() for h in held.values()]).mean()
                optimizer.zero_grad()
                (error + (PENALTY * undecided if done > 0.2 else 0.0)).backward(inputs=list(soft.values()))
                optimizer.step()
        return {weight: self.between(weight, (value.detach() >= 0).float()) for weight, value in soft.items()}

    def first(self, weight: str) -> Tensor:
        """a (N, C) at which rounding changes nothing within the range."""
        _, below, above = self.levels[weight]
        gap = (above - below).clamp(min=torch.finfo(above.dtype).tiny)
        share = torch.where(above > below, (matrices(self.model, weight).float() - below) / gap, 0.0).clamp(0, 1)
        return torch.logit((share + (STRETCH - 1) / 2) / STRETCH)

    def between(self, weight: str, h: Tensor) -> Tensor:
        """The matrix with shares h of the steps up."""
        _, below, above = self.levels[weight]
        return below + h * (above - below)

    def difference(self, index: int, numbers: Mapping[str, Tensor]) -> Tensor:
        """Relative, of one call with these matrices."""
        weights = {
            weight.removeprefix(f"{self.name}."): as_weight(self.model, weight, matrix).to(
                self.model.get_parameter(weight).dtype
            )
            for weight, matrix in numbers.items()
        }
        module = self.model.get_submodule(self.name)
        return change(outputs_with(module, weights, self.given[index]), self.wanted[index].outputs)

    @torch.no_grad()
    def loss(self, numbers: Mapping[str, Tensor]) -> float:
        """Summed over all calls."""
        return sum(self.difference(index, numbers).item() for index in range(len(self.given)))
