"""MixDQ: bits by an integer programme over what each layer does to images, and a first token that is left alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.quant import Format, Record, matrices, set_matrices
from zoo.layers.quant.inputs import Inputs
from zoo.patterns import matched
from zoo.quantize.allocation import allocated, group_budgets
from zoo.quantize.calibration import Calibration
from zoo.quantize.distil import first_names
from zoo.quantize.method import Method
from zoo.quantize.q_diffusion import channels, require_diffusion, row_format
from zoo.quantize.similarity import clean_images, ratio_db, ssim
from zoo.quantize.static_inputs import input_grid, seen_inputs, with_inputs
from zoo.quantize.store import Store

CONTEXTS = ("*.attn2.to_k", "*.attn2.to_v")  # that read the tokens of a text or a class
CONTENT = ("*.attn2.*", "*.ff.*")  # that say what an image shows, rather than how well


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixDQ(Method, name="mixdq", calibrated=True):
    r"""Bits of each matrix from an integer programme.

    .. math::
        \max_{c} \sum_{i, b} s_{ib} c_{ib}, \quad \sum_b c_{ib} = 1, \quad \sum_{i, b} b \, n_i c_{ib} \le B \sum_i n_i,
        \quad c_{ib} \in \{0, 1\}

    with n numbers in a matrix and s what the model makes with that matrix alone in b bits: of cross-attention and
    feed-forward layers, which say what an image shows, the structural similarity of the images that the predictions
    stand for, of all others the ratio of signal and noise in dB of the predictions. Both kinds have a programme of
    their own, with budgets :math:`B_c = k B_q` that together are B; of several k, and of the same bits for all, the one
    that changes the model's outputs least is taken.

    With ``activation_bits`` the inputs of linear layers and convolutions have a stored scale and zero, from their
    smallest and largest number; the share ``whole`` of the layers that suffer most by it keep theirs as they are. In
    the keys and values of cross-attention the ``first`` tokens are left out of both: there a text's first token is far
    larger than the rest. A model without cross-attention has one programme and no such token.

    ``calibration`` is ``Calibration.of_samples(model)``, where none is given that of 64 images in 20 steps. A row of a
    matrix has one scale, where no ``group_size`` says otherwise.

    Paper: Zhao et al., "MixDQ: Memory-Efficient Few-Step Text-to-Image Diffusion Models with Metric-Decoupled Mixed
    Precision Quantization", arXiv 2405.17873; there scales of weights are symmetric, models take one step, and the
    product of the first token is stored.
    """

    budget: float | None = None
    """B, mean bits of a code; None: ``bits``."""
    widths: tuple[int, ...] = (2, 4, 8)
    """Bits of cross-attention and feed-forward layers."""
    quality_widths: tuple[int, ...] = (4, 8)
    """Bits of the others."""
    ratios: tuple[float, ...] = (0.6, 0.8, 1.0, 1.25)
    """k, of those that are tried."""
    first: int = 1
    """Tokens of a context that are not rounded."""
    whole: float = 0.01
    """Share of the layers whose inputs are not."""

    def __post_init__(self):
        for field in ("widths", "quality_widths", "ratios"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        super().__post_init__()
        every = (*self.widths, *self.quality_widths)
        if not self.widths or not self.quality_widths or not all(bits in range(1, 9) for bits in every):
            raise ValueError(f"widths must hold bits from 1 to 8, got {self.widths} and {self.quality_widths}")
        if not self.ratios or min(self.ratios) <= 0 or not 0 <= self.whole <= 1 or self.first < 0:
            raise ValueError(
                "ratios must be above 0, whole a share of the layers and first at least 0, got "
                f"{self.ratios}, {self.whole} and {self.first}"
            )

    def format(self, columns: int) -> Format:
        """A row is a group where no size is asked for."""
        return row_format(super().format(columns), self.group_size)

    def check(self, model: nn.Module) -> None:
        """Refuse what draws nothing in steps."""
        require_diffusion(model, "mixdq")

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """Bits of each weight, and the grid of its inputs."""
        assert calibration is not None
        first = first_names(model, names)
        parts = list(dict.fromkeys(first.values()))
        layers = [name.removesuffix(".weight") for name in parts if not isinstance(_owner(model, name), nn.Embedding)]
        store.expect(len(parts) + 1 + (len(layers) + 1 if self.activation_bits else 0))
        judge = Judge(model, calibration)
        scores = {name: store.once(f"scores {name}", lambda name=name: self._scores(judge, name)) for name in parts}
        bits = store.once("bits", lambda: self._chosen(judge, parts, scores))
        known: dict[str, Any] = {name: {"bits": int(bits[first[name]])} for name in names}
        if self.activation_bits is not None:
            grids = self._grids(judge, layers, store, self.activation_bits)
            for name in parts:
                known[name] |= grids.get(name.removesuffix(".weight"), {})
        return known

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """Nearest codes in the bits of this weight."""
        record = Record.nearest(matrix, dataclasses.replace(form, bits=known["bits"], activation_bits=None))
        if "inputs" not in known:
            return record
        return with_inputs(record, known["inputs"], self.activation_bits or 8, known["grid"])

    def _scores(self, judge: Judge, name: str) -> dict[str, Tensor]:
        """Of one weight in each of its widths."""
        content = matched(name, CONTENT)
        found = {}
        for bits in self.widths if content else self.quality_widths:
            with self._rounded(judge.model, {name: bits}):
                outputs = judge.outputs()
            found[str(bits)] = judge.content(outputs) if content else judge.quality(outputs)
        return found

    def _chosen(
        self, judge: Judge, parts: Sequence[str], scores: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The best division, by the change of the outputs."""
        sizes = {name: judge.model.get_parameter(name).numel() for name in parts}
        values = {name: {int(bits): score.item() for bits, score in found.items()} for name, found in scores.items()}
        budget, choices = self.budget or self.bits, []
        content = [name for name in parts if matched(name, CONTENT)]
        groups = [content, [name for name in parts if name not in content]]
        for ratio in self.ratios if all(groups) else (1.0,):
            counts = [sum(sizes[name] for name in group) for group in groups]
            budgets = group_budgets(counts[0], counts[1], budget, ratio)
            halves = [
                allocated({name: values[name] for name in group}, sizes, own)
                for group, own in zip(groups, budgets, strict=True)
            ]
            if None not in halves:
                choices.append({**halves[0], **halves[1]})  # type: ignore[dict-item]
        if budget in range(1, 9):
            choices.append(dict.fromkeys(parts, int(budget)))
        if not choices:
            raise ValueError(
                f"no division into {self.widths} and {self.quality_widths} bits has a mean of at most {budget}: give "
                "smaller widths or a larger budget"
            )
        losses = []
        for choice in choices:
            with self._rounded(judge.model, choice):
                losses.append(judge.change(judge.outputs()))
        best = choices[losses.index(min(losses))]
        return {name: torch.tensor(bits) for name, bits in best.items()}

    def _grids(self, judge: Judge, layers: Sequence[str], store: Store, bits: int) -> dict[str, dict[str, Any]]:
        """Rules and stored tensors of the inputs of all layers but those that suffer most."""
        sizes = {name: (channels(judge.model.get_submodule(name)),) for name in layers}
        first = {name: self.first for name in layers if matched(name, CONTEXTS)}

        def grids() -> dict[str, Tensor]:
            seen = seen_inputs(judge.model, sizes, judge.calibration, first)
            found = {name: input_grid(numbers, bits, search=False) for name, numbers in seen.items()}
            return {f"{name}.{key}": tensor for name, held in found.items() for key, tensor in held.items()}

        held, found = store.once("inputs", grids), {}
        for name in layers:
            grid = {key: held[f"{name}.{key}"] for key in ("input_scale", "input_zero")}
            found[name] = {"inputs": Inputs(parts=sizes[name], first=first.get(name, 0)), "grid": grid}

        def suffers(name: str) -> dict[str, Tensor]:
            with rounded_inputs(judge.model, name, bits, **found[name]):
                return {"quality": judge.quality(judge.outputs())}

        quality = {
            name: store.once(f"inputs {name}", lambda name=name: suffers(name))["quality"].item() for name in layers
        }
        for name in sorted(quality, key=lambda name: quality[name])[: math.ceil(self.whole * len(layers))]:
            del found[name]
        return found

    @contextmanager
    def _rounded(self, model: nn.Module, widths: Mapping[str, int]) -> Iterator[None]:
        """Within it these weights are rounded."""
        kept = {name: model.get_parameter(name).data for name in widths}
        try:
            for name, bits in widths.items():
                matrix = matrices(model, name).float()
                form = self.format(matrix.shape[-1])
                set_matrices(model, name, self.record(matrix, form, {"bits": bits}).dequantise())
            yield
        finally:
            for name, data in kept.items():
                model.get_parameter(name).data = data


class Judge:
    """What a model said of a calibration, and how far from it a changed one is."""

    def __init__(self, model: Any, calibration: Calibration):
        self.model, self.calibration = model, calibration
        self.expected = self.outputs()
        self.images = clean_images(model, calibration, self.expected)

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """Of all batches."""
        return list(self.calibration.outputs(self.model))

    def content(self, outputs: Sequence[Tensor]) -> Tensor:
        """Mean structural similarity of the images that predictions stand for."""
        images = clean_images(self.model, self.calibration, outputs)
        return ssim(torch.cat(images), torch.cat(self.images)).mean()

    def quality(self, outputs: Sequence[Tensor]) -> Tensor:
        """dB."""
        return ratio_db(torch.cat(list(outputs)), torch.cat(self.expected))

    def change(self, outputs: Sequence[Tensor]) -> float:
        """Mean square."""
        return (torch.cat(list(outputs)) - torch.cat(self.expected)).square().mean().item()


@contextmanager
def rounded_inputs(
    model: nn.Module, name: str, bits: int, inputs: Inputs, grid: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within it what one layer reads is rounded."""
    module = model.get_submodule(name)
    axis = -1 if isinstance(module, nn.Linear) else 1

    def round_first(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs.rounded(args[0], bits, grid, axis), *args[1:])

    handle = module.register_forward_pre_hook(round_first)
    try:
        yield
    finally:
        handle.remove()


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
