"""Scales that pass from a layer's inputs into what makes them: the model's outputs stay, its matrices become easier.

.. math::
    W x = (W \\, \\mathrm{diag}(c)) \\, (\\mathrm{diag}(1 / c) \\, x)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.quantize.calibration import Calibration, watching

TOLERANCE = 1e-3  # of the outputs, relative: a wrong fold is off by far more, rounding by far less


@dataclass(frozen=True)
class Fold:
    """Linear layers that read one input, and the norm that makes it and nothing else of account.

    norm: its name. linears: theirs.
    """

    norm: str
    linears: tuple[str, ...]

    def apply(self, model: nn.Module, c: Tensor) -> None:
        """Multiply the columns of the matrices by c (C,), and divide what the norm multiplies by."""
        norm: Any = model.get_submodule(self.norm)
        for parameter in (norm.weight, getattr(norm, "bias", None)):
            if parameter is not None:
                parameter.data = parameter.data / c.to(parameter)
        for name in self.linears:
            weight: Any = model.get_submodule(name).weight
            weight.data = weight.data * c.to(weight)


def folds(model: nn.Module, linears: Iterable[str], calibration: Calibration) -> list[Fold]:
    """The folds of a model: found by watching whose output goes into which linear layers, and kept where dividing it
    there leaves the model's outputs as they are, so where nothing else reads it.

    Args:
        model: in eval mode; left as it was.
        linears: names of the linear layers that may take part.
        calibration: of which the first batch is run.
    """
    first = Calibration(calibration.batches[:1])
    norms = {name: module for name, module in model.named_modules() if _scales(module)}
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no other gets their place
    read: dict[str, list[str]] = {}

    def see(name: str, x: Tensor) -> None:
        if x.data_ptr() in made and made[x.data_ptr()][1].shape == x.shape:
            read.setdefault(made[x.data_ptr()][0], []).append(name)

    def keep(name: str):
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            made[output.data_ptr()] = name, output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in norms.items()]
    try:
        with torch.no_grad(), watching({name: model.get_submodule(name) for name in linears}, see):
            expected = next(first.outputs(model)).clone()
    finally:
        for handle in handles:
            handle.remove()
    found = [Fold(norm, tuple(dict.fromkeys(names))) for norm, names in read.items()]
    return [fold for fold in found if _holds(model, fold, first, expected)]


def _scales(module: nn.Module) -> bool:
    """Whether a module looks like a norm: it ends with a product with a vector."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1 and "norm" in type(module).__name__.lower()


@torch.no_grad()
def _holds(model: nn.Module, fold: Fold, calibration: Calibration, expected: Tensor) -> bool:
    """Whether the outputs stay when one half of the channels is doubled and the other halved."""
    places = [model.get_submodule(name) for name in (fold.norm, *fold.linears)]
    before = [{key: parameter.data for key, parameter in module.named_parameters(recurse=False)} for module in places]
    channels: Any = places[0].weight
    c = torch.where(torch.arange(len(channels), device=channels.device) % 2 == 0, 2.0, 0.5)
    fold.apply(model, c)
    found = next(calibration.outputs(model))
    for module, kept in zip(places, before, strict=True):
        for key, data in kept.items():
            getattr(module, key).data = data
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())
