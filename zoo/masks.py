"""Training with sparse weights: masks between weights and layers, which are saved, and one door to them."""

from __future__ import annotations

import dataclasses
import zlib
from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from zoo.adapt.method import outputs
from zoo.changes import Change, apply, as_change
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.options import require_at_least
from zoo.layers.quant import compressible
from zoo.layers.quant.between import between
from zoo.layers.sparse import Pattern
from zoo.layers.sparse.masks import Evolving, Mask, Shrinking, put_masks
from zoo.patterns import check_used, matched, patterns_of
from zoo.registry import nearest

Model = TypeVar("Model", bound=nn.Module)
SPARSITIES: dict[str, type[Masks]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks(Change):
    """A way to train with masks: subclass it as a frozen dataclass, ``class ISSP(Masks, kind="iss_p")``, that makes the
    mask of a weight.

    The matrices of linear layers and experts and convolutions have masks; embeddings, weights that are shared,
    depthwise convolutions, norms, and layers with rules of their own, such as routers, stay as they are.
    """

    kind: ClassVar[str]

    skip: tuple[str, ...] = ()
    """Patterns of names of weights that stay dense, such as "blocks.0.*"."""
    head: bool = False
    """Mask the layer of the outputs too, where it shares no weight."""

    def __init_subclass__(cls, *, kind: str = "", **rest: Any):
        super().__init_subclass__(kind=kind, **rest)
        if kind:
            SPARSITIES[kind] = cls

    @abstractmethod
    def mask(self, name: str, weight: Tensor, mirrored: bool) -> Mask:
        """Of the weight of that name; ``mirrored`` for experts.

        Raises:
            ValueError: for a weight that cannot have it.
        """

    def install(self, model: nn.Module) -> None:
        """Put the masks in place; see ``Change``."""
        made = {}
        for name, weight in self.weights(model).items():
            mirrored = isinstance(model.get_submodule(name.rpartition(".")[0]), RoutedExperts)
            try:
                made[name] = self.mask(name, weight, mirrored)
            except ValueError as error:
                raise ValueError(f"{name}: {error}; skip it, or choose another pattern") from None
        put_masks(model, made, made.__getitem__)

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Those that get masks, by name.

        Raises:
            ValueError: where there are none, something else stands before them, or ``skip`` names none.
            TypeError: for a ``skip`` that is no pattern.
        """
        if any(True for _ in between(model, nn.Module)):
            raise ValueError(f"{self.kind} takes plain weights, these are masked, rounded or noisy: zoo.settle(model)")
        able = compressible(model)
        count: dict[int, int] = {}
        for weight in able.values():
            count[id(weight)] = count.get(id(weight), 0) + 1
        left = [] if self.head else [id(layer.weight) for layer in outputs(model) if hasattr(layer, "weight")]
        left += [id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)]
        found = {name: weight for name, weight in able.items() if count[id(weight)] == 1 and id(weight) not in left}
        if not found:
            raise ValueError(f"there is nothing to mask in {type(model).__name__}: no matrix of its own weight")
        skip = patterns_of(self.skip)
        check_used(skip, found)
        found = {name: weight for name, weight in found.items() if not matched(name, skip)}
        if not found:
            raise ValueError("skip leaves no weight to mask")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruned(Masks, kind="pruned"):
    """The numbers of the largest magnitude, as they are when the change is made, and no others, go on learning."""

    ratio: float = 0.5
    """Share of the numbers that go, in [0, 1)."""
    pattern: str = "unstructured"
    """Among which numbers: "unstructured" (of a matrix), "row", or "n:m", such as "2:4", whatever ``ratio`` says."""

    def __post_init__(self):
        Pattern(self.pattern, self.ratio)

    def mask(self, name: str, weight: Tensor, mirrored: bool) -> Mask:
        """Of the largest numbers."""
        made = Mask(weight, Pattern(self.pattern, self.ratio), mirrored)
        made.keep(weight.detach().abs())
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class ISSP(Masks, kind="iss_p"):
    """Iterative soft shrinkage: for ``steps`` optimiser steps the smallest numbers of each matrix, whichever they are
    then, are multiplied by ``shrink`` after every step; then they are masked, and the others go on learning. See
    ``Shrinking``.

    Paper: Wang et al., "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution", arXiv 2303.09650; its
    authors train from random weights, with a factor of 0.95 over 100,000 of 300,000 iterations.
    """

    ratio: float = 0.9
    """Share of the numbers that go, in [0, 1)."""
    pattern: str = "unstructured"
    """See ``Pruned``."""
    shrink: float = 0.95
    """Factor of the smallest: 0 sets them to zero each time, 1 prunes once at the end."""
    steps: int = 1000
    """Optimiser steps until the mask is set."""

    def __post_init__(self):
        Pattern(self.pattern, self.ratio)
        require_at_least(1, steps=self.steps)
        if not 0 <= self.shrink <= 1:
            raise ValueError(f"shrink must lie in [0, 1], got {self.shrink}")

    def mask(self, name: str, weight: Tensor, mirrored: bool) -> Mask:
        """Empty for now."""
        return Shrinking(weight, Pattern(self.pattern, self.ratio), mirrored, self.shrink, self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evolution(Masks, kind="evolution"):
    """Sparse evolutionary training: epsilon (C + N) random links of a matrix (N, C), of which the weakest give way to
    random new ones every ``every`` optimiser steps. See ``Evolving``.

    Paper: Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity", arXiv
    1707.04780; as Atashgahi et al. have it, "Quick and Robust Feature Selection", arXiv 2012.00560.
    """

    epsilon: float = 13.0
    """Links over rows and columns, or all of them where there are no more."""
    zeta: float = 0.2
    """Share of them that goes, in (0, 1)."""
    every: int = 100
    """Optimiser steps between two evolutions."""
    evolutions: int | None = None
    """At most so many; no end for None."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self):
        require_at_least(1, every=self.every)
        if not self.epsilon > 0 or not 0 < self.zeta < 1 or (self.evolutions is not None and self.evolutions < 0):
            raise ValueError(
                "epsilon must be positive, zeta in (0, 1) and evolutions at least 0, got "
                f"{self.epsilon}, {self.zeta} and {self.evolutions}"
            )

    def mask(self, name: str, weight: Tensor, mirrored: bool) -> Mask:
        """Of random links."""
        rows, columns = weight.shape[-2:] if mirrored else weight.flatten(1).shape
        count = min(rows * columns, round(self.epsilon * (rows + columns)))
        options = {"zeta": self.zeta, "every": self.every, "evolutions": self.evolutions}
        return Evolving(weight, count, mirrored, seed=zlib.crc32(f"{self.seed} {name}".encode()), **options)


def mask_weights(model: Model, method: str | Masks, **options: Any) -> Model:
    """Let a model learn with sparse weights, in place, before its optimiser is made.

    >>> zoo.mask_weights(model, "iss_p", ratio=0.9, steps=500)
    >>> ...  # train; call zoo.after_step(model) after every optimizer.step(), as the training tasks do
    >>> zoo.settle(model)  # plain weights with zeros
    >>> zoo.sparsify(model, sparsity=0.9)  # the numbers that are left, and a bit a place

    The masks are a part of the model: checkpoints and ``zoo.save_model`` hold them. In a recipe: ``--sparsity iss_p
    --sparsity.ratio 0.9``, or ``model_args: {changes: [{kind: iss_p, ratio: 0.9}]}``.

    Args:
        model: of ``create_model``, or any module.
        method: a name of ``zoo.masks.SPARSITIES`` ("pruned", "iss_p", "evolution"), or one made.
        options: fields of the method; for all of them ``skip`` and ``head``, see ``Masks``.

    Returns:
        The model.

    Raises:
        ValueError: for an unknown method or option, one out of range, a model without matrices or one whose weights are
            compressed, adapted, masked, rounded or noisy; nothing is changed then.
    """
    if isinstance(method, Masks):
        if options:
            raise ValueError(f"options go with a method's name, got {method} and {options}")
    elif method not in SPARSITIES:
        known = ", ".join(sorted(SPARSITIES))
        raise ValueError(f"unknown sparsity {method!r}{nearest(method, SPARSITIES)}; there are {known}")
    apply(model, method if isinstance(method, Masks) else as_change({"kind": method, **options}))
    return model
