"""Emulated precision: a model in any floating-point, fixed-point or block-scaled format, computed in its own dtype."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from zoo.changes import Change, apply, changes_of
from zoo.kernels.common.minifloat import BlockScaled, FixedPoint, Minifloat
from zoo.language.base import LanguageModel
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.quant import compressible
from zoo.layers.quant.between import put_between
from zoo.layers.quant.rounded import Rounded

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emulated(Change, kind="emulated"):
    """``Rounded`` before the weights of layers, and after what every module returns."""

    exponent_bits: int = 8
    mantissa_bits: int = 7
    largest: float | None = None
    rounding: str = "nearest"
    saturate: bool = False
    weights: bool = True
    activations: bool = True
    fixed: tuple[int, int] | None = None
    subnormal: bool = True
    block: int | None = None

    def __post_init__(self):
        self.rounded()
        if not (self.weights or self.activations):
            raise ValueError("there is nothing to round: neither weights nor activations")

    def rounded(self, axis: int = -1) -> Rounded:
        """What rounds; along an axis where neighbours share a scale."""
        if self.fixed is not None:
            kind: Any = FixedPoint(*self.fixed)
        else:
            largest: Any = self.largest
            kind = Minifloat(self.exponent_bits, self.mantissa_bits, largest, self.subnormal)
        kind = kind if self.block is None else BlockScaled(kind, self.block)
        return Rounded(kind, self.rounding, self.saturate, axis)

    def install(self, model: nn.Module) -> None:
        """Parametrise and hook, in place; tied weights stay tied."""
        if any(isinstance(change, Emulated) for change in changes_of(model)):
            raise ValueError("the model is emulated in a format already")
        modules, weights = list(model.modules()), compressible(model) if self.weights else {}
        if self.activations:
            texts = {part for module in modules if isinstance(module, LanguageModel) for part in module.modules()}
            for module in modules:
                wide = self.rounded(-1 if module in texts else 1)
                module.register_forward_hook(partial(_rounded_output, self.rounded(), wide))
        axes = {name: _inputs(model, name, weight) for name, weight in weights.items()}
        put_between(model, weights, lambda name: self.rounded(axes[name]))


def _inputs(model: nn.Module, name: str, weight: Tensor) -> int:
    """The axis of the inputs in a weight: of linear layers and embeddings the last."""
    if isinstance(model.get_submodule(name.rpartition(".")[0]), RoutedExperts):
        return -2
    return 1 if weight.dim() > 2 else -1


def _rounded_output(rounded: Rounded, wide: Rounded, module: nn.Module, inputs: Any, output: Any) -> Any:
    floating = isinstance(output, Tensor) and output.is_floating_point()
    return (wide if output.dim() > 3 else rounded)(output) if floating else output


def emulate(
    model: Model,
    exponent_bits: int | None = None,
    mantissa_bits: int | None = None,
    *,
    fixed: tuple[int, int] | None = None,
    block: int | None = None,
    largest: float | None = None,
    subnormal: bool = True,
    rounding: str = "nearest",
    saturate: bool = False,
    weights: bool = True,
    activations: bool = True,
) -> Model:
    """Compute a model as if its weights and activations were of a floating-point or fixed-point format, in place.

    The weights of linear layers, embeddings, experts and convolutions are rounded where they are used, and so is what
    every module returns; what happens inside of a module is in the model's own dtype. Weights are kept as they were and
    learn: gradients pass straight through. ``zoo.save_model`` keeps it so.

    Args:
        model: of ``create_model``.
        exponent_bits: 1 to 11; more than 8, or of mantissa more than 23, need a model in float64 (``model.double()``).
        mantissa_bits: 0 to 52; 5 and 10 are half precision, 8 and 7 bfloat16, 4 and 3 with a largest number of 448 the
            float8_e4m3fn of torch.
        fixed: bits before and after the point of fixed-point numbers instead, such as (4, 4).
        block: so many neighbours share a power of two of 8 bits, as in OCP's MX formats, where they are 32: (2, 1) with
            a largest number of 6 are MXFP4. They are the inputs of an output in weights, and lie along the last axis of
            activations, of images along their channels, the second of four axes or more; a language model's lie
            along the last axis always, lest a scale depend on later tokens. None: there is no scale.
        largest: the largest number; None: as IEEE 754 has it.
        subnormal: whether there are subnormal numbers; without, what would be one is 0.
        rounding: "nearest", "ties_away", "ties_zero", "odd", "up", "down", "zero", "stochastic" or "coin", see
            ``kernels.common.minifloat``.
        saturate: what is too large becomes the largest number, not infinity.
        weights, activations: what is rounded.

    Returns:
        ``model``.

    Raises:
        ValueError: for a format or a rounding that there is not, nothing to round, or a model that is emulated already
            or compressed; a model that is not in float64 refuses wider formats when it computes.

    Paper: Carson and Chen, "Pychop", arXiv 2504.07835.
    """
    sizes: dict[str, Any] = {"exponent_bits": exponent_bits, "mantissa_bits": mantissa_bits}
    given = [size for size in sizes.values() if size is not None]
    if len(given) != (0 if fixed else 2):
        raise ValueError(
            f"give exponent_bits and mantissa_bits, or fixed=(before, after) alone, got {given} and {fixed}"
        )
    change = Emulated(
        **(sizes if fixed is None else {}), fixed=fixed and (fixed[0], fixed[1]), block=block, largest=largest,
        subnormal=subnormal, rounding=rounding, saturate=saturate, weights=weights, activations=activations,
    )  # fmt: skip
    apply(model, change)
    return model
