"""Training for a few bits: weights that are rounded, or noisy as if they were, while they learn."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from zoo.changes import Change, apply, changes_of
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.quant import compressible, matrices
from zoo.layers.quant.between import between, put_between, take_away
from zoo.layers.quant.nearest import Nearest
from zoo.layers.quant.noise import WeightNoise
from zoo.layers.quant.replace import require_plain
from zoo.layers.sparse.masks import unmask
from zoo.masks import Masks
from zoo.quantize.method import method_of

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedWeights(Change, kind="rounded_weights"):
    """``Nearest`` between all that ``zoo.quantize`` compresses and the layers that compute with it."""

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False
    scale_dtype: str = "bfloat16"
    layout: str = "int"

    def __post_init__(self):
        self.method()

    def method(self) -> Any:
        """Which says how each row is kept."""
        return method_of("rtn", {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def install(self, model: nn.Module) -> None:
        """Parametrise, in place."""
        _check(model, self.kind)
        method, names = self.method(), compressible(model)
        if not names:
            raise ValueError(f"there is nothing to round in {type(model).__name__}")
        forms = {name: method.format(matrices(model, name).shape[-1]) for name in names}
        for name, form in forms.items():
            form.groups(matrices(model, name).shape[-1])
        put_between(model, names, lambda name: Nearest(forms[name], _is_mirrored(model, name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyWeights(Change, kind="noisy_weights"):
    """``WeightNoise`` between linear layers, experts and convolutions and their weights."""

    start: float = 6.0
    target: float = 4.0
    block: int = 32
    seed: int = 0

    def __post_init__(self):
        if not self.start >= self.target >= 1 or self.block < 1:
            raise ValueError(
                "bits go from start down to target, of at least 1, in blocks of at least 1, got "
                f"start {self.start}, target {self.target} and block {self.block}"
            )

    def install(self, model: nn.Module) -> None:
        """Parametrise, in place."""
        _check(model, self.kind)
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        weights = {name: weight for name, weight in compressible(model).items() if id(weight) not in tables}
        if not weights:
            raise ValueError(f"there is nothing to make noisy in {type(model).__name__}")

        def make(name: str) -> WeightNoise:
            seed, weight = zlib.crc32(f"{self.seed} {name}".encode()), weights[name]
            flatten = weight.dim() > 2 and not isinstance(_owner(model, name), RoutedExperts)
            return WeightNoise(weight, self.start, self.target, self.block, seed, flatten)

        put_between(model, weights, make)


BETWEEN: dict[type, type[nn.Module]] = {RoundedWeights: Nearest, NoisyWeights: WeightNoise}


def _is_learning(change: Change) -> bool:
    return type(change) in BETWEEN or isinstance(change, Masks)


def _check(model: nn.Module, what: str) -> None:
    if made := [change.kind for change in changes_of(model) if _is_learning(change)]:
        raise ValueError(f"the model is trained by {made[0]} already: zoo.settle(model) ends it")
    require_plain(model, what)


def round_weights(
    model: Model,
    bits: int = 4,
    *,
    group_size: int | None = None,
    symmetric: bool = False,
    scale_dtype: str = "bfloat16",
    layout: str = "int",
) -> Model:
    """Let a model learn as it will be once ``zoo.quantize`` has rounded it, in place.

    Whatever ``zoo.quantize`` compresses is rounded to nearest where it is used; the numbers beneath learn, with the
    gradient straight through. ``zoo.settle(model)`` ends it, and ``zoo.quantize`` with the same options makes records
    of the same outputs. In a recipe: ``model_args: {changes: [{kind: rounded_weights, bits: 3}]}``.

    Args:
        model: of ``create_model``.
        bits, group_size, symmetric, scale_dtype, layout: see ``zoo.quantize``.

    Returns:
        ``model``.

    Raises:
        ValueError: for options out of range, a group that does not divide the inputs of a layer, or a model that is
            trained so already, or compressed. Nothing is changed then.

    Paper: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv 1308.3432.
    """
    apply(model, RoundedWeights(
        bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype, layout=layout
    ))  # fmt: skip
    return model


def noisy_weights(model: Model, start: float = 6.0, target: float = 4.0, *, block: int = 32, seed: int = 0) -> Model:
    """Let a model learn with noise of the size that rounding has (GaussWS), in place; see ``WeightNoise``.

    Noise is added to the matrices of linear layers, experts and convolutions in training mode, new with each step
    (``zoo.after_step``, which the training tasks call); embeddings, and heads that are tied to one, have none. The bits
    of each block learn, and weight decay takes them from ``start`` to ``target``. ``zoo.settle(model)`` ends it. In a
    recipe: ``model_args: {changes: [{kind: noisy_weights, target: 4}]}``.

    Args:
        model: of ``create_model``.
        start, target: bits at the beginning, and where they decay to, at least 1.
        block: rows and columns that share a maximum and bits.
        seed: of the noise.

    Returns:
        ``model``.

    Raises:
        ValueError: for bits or a block out of range, or a model that is trained so already, or compressed. Nothing is
            changed then.

    Paper: "Gaussian Weight Sampling for Scalable, Efficient and Stable Pseudo-Quantization Training".
    """
    apply(model, NoisyWeights(start=start, target=target, block=block, seed=seed))
    return model


def settle(model: Model) -> Model:
    """End what ``round_weights``, ``noisy_weights`` and ``mask_weights`` began, in place: a plain model of the weights
    beneath, with zeros where masks have them.

    Returns:
        ``model``; one that was not trained so is left as it is.
    """
    for kind in BETWEEN.values():
        take_away(model, kind)
    unmask(model)
    cast(Any, model).changes = tuple(change for change in changes_of(model) if not _is_learning(change))
    return model


def noise_bits(model: nn.Module) -> dict[str, Tensor]:
    """Bits that the noise of each block of a model stands for now, by the name of the weight."""
    names = {module: name for name, module in model.named_modules()}
    with torch.no_grad():
        return {f"{names[layer]}.{name}": noise.bits for layer, name, noise in between(model, WeightNoise)}  # type: ignore[union-attr]


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _is_mirrored(model: nn.Module, name: str) -> bool:
    return isinstance(_owner(model, name), RoutedExperts)
