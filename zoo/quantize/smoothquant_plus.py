"""SmoothQuant+: channels with large inputs get finer steps, by one exponent for the whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.quant import Format, Record, matrices, set_matrices
from zoo.quantize.calibration import Calibration, largest_inputs, model_outputs
from zoo.quantize.folds import Fold, folds
from zoo.quantize.method import Method
from zoo.quantize.store import Store

SMALLEST = 1e-5  # of a factor: a channel may be zero on all of the calibration


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothQuantPlus(Method, name="smoothquant_plus", calibrated=True, any_layout=True):
    r"""Scale the inputs of linear layers into the norm before them, then round to nearest.

    .. math::
        c_j = \frac{\max |X_j|^{\alpha}}{\max |W_j|^{1 - \alpha}}

    over the inputs X of the calibration and all matrices W that read them. Of a grid of exponents, and no scaling at
    all, the whole model takes the one whose rounded weights change its outputs least on the calibration. Experts,
    convolutions, embeddings and linear layers that no norm feeds alone are rounded as they are.

    Paper: Pan et al., "SmoothQuant+: Accurate and Efficient 4-bit Post-Training WeightQuantization for LLM", arXiv
    2312.03788; the factors: Xiao et al., "SmoothQuant", arXiv 2211.10438, equation 4. The steps of the grid are ours.
    """

    steps: int = 20
    """Exponents tried between 0 and 1, both of which are."""

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def prepare(self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store) -> Mapping:
        """Scale by the best exponent."""
        assert calibration is not None
        linears = [
            name.removesuffix(".weight")
            for name in names
            if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        ]
        found = folds(model, linears, calibration)
        read = sorted({name for fold in found for name in fold.linears})
        alphas = [None, *(index / self.steps for index in range(self.steps + 1))]
        store.expect(bool(read) + len(alphas))
        largest = store.once("largest inputs", lambda: largest_inputs(model, read, calibration)) if read else {}

        def loss(alpha: float | None) -> Callable[[], dict[str, Tensor]]:
            return lambda: {"loss": self._loss(model, names, found, largest, alpha, calibration, expected)}

        with torch.no_grad():
            expected = model_outputs(model, calibration)
            losses = [store.once(f"loss {alpha}", loss(alpha))["loss"].item() for alpha in alphas]
            _scale(model, found, largest, alphas[losses.index(min(losses))])
        return {}

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The nearest codes within the range of each group."""
        return Record.nearest(matrix, form)

    def _loss(self, model, names, found, largest, alpha, calibration, expected: Tensor) -> Tensor:
        """The mean squared change of the outputs; the model is left as it was."""
        kept = {parameter: parameter.data for parameter in model.parameters()}
        try:
            _scale(model, found, largest, alpha)
            for name in names:
                matrix = matrices(model, name)
                rounded = self.record(matrix.float(), self.format(matrix.shape[-1]), None).dequantise()
                set_matrices(model, name, rounded)
            return (model_outputs(model, calibration) - expected).square().mean()
        finally:
            for parameter, data in kept.items():
                parameter.data = data


def factors(model: nn.Module, fold: Fold, largest: Mapping[str, Tensor], alpha: float) -> Tensor:
    """c (C,) of one fold, with a mean logarithm of 0."""
    weights: list[Any] = [model.get_submodule(name).weight for name in fold.linears]
    w = torch.stack([weight.abs().amax(0).float() for weight in weights]).amax(0).clamp(min=SMALLEST)
    x = torch.stack([largest[name] for name in fold.linears]).amax(0).clamp(min=SMALLEST)
    c = (x**alpha / w ** (1 - alpha)).log()
    return (c - c.mean()).exp()


def _scale(model: nn.Module, found: Sequence[Fold], largest: Mapping[str, Tensor], alpha: float | None) -> None:
    if alpha is not None:
        for fold in found:
            fold.apply(model, factors(model, fold, largest, alpha))
