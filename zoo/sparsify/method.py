"""What a method of sparsity is: a frozen dataclass of its options that scores numbers, or puts what it likes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from zoo.changes import apply
from zoo.layers.sparse import Pattern
from zoo.layers.sparse.replace import weights_of
from zoo.registry import nearest
from zoo.sparsify.change import Sparse

if TYPE_CHECKING:
    from zoo.quantize.calibration import Calibration

METHODS: dict[str, type[Method]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method, registered by ``class MyMethod(Method, name="my_method", calibrated=True)``; options are its fields.

    Attributes:
        calibrated: it needs inputs of the model.
        pattern: where none is asked for.
    """

    calibrated: ClassVar[bool] = False
    pattern: ClassVar[str] = "unstructured"

    def __init_subclass__(cls, name: str, calibrated: bool = False, pattern: str = "unstructured"):
        METHODS[name] = cls
        cls.calibrated, cls.pattern = calibrated, pattern

    def takes(self, model: nn.Module, name: str) -> bool:
        """Whether the weight of that name, of a linear layer or of experts, is one for it."""
        return True

    def check(self, model: nn.Module, names: Sequence[str], pattern: Pattern) -> None:
        """Raise a ValueError for a pattern that the weights do not have."""
        for name in names:
            try:
                pattern.count(*weights_of(model, name).shape[-2:])
            except ValueError as error:
                raise ValueError(f"{name}: {error}; skip it or choose another pattern") from None

    def see(self, model: nn.Module, names: Sequence[str], calibration: Calibration | None) -> Mapping[str, Any]:
        """Name of a weight -> what ``score`` shall know of it; the model is in eval mode and stays as it is."""
        return {}

    def score(self, matrix: Tensor, known: Any) -> Tensor:
        """What the numbers of a matrix (N, C), or of matrices (E, N, C), are worth: the largest are kept."""
        raise NotImplementedError

    def put(self, model: nn.Module, names: Sequence[str], pattern: Pattern, known: Mapping[str, Any]) -> None:
        """Change the model; unless it says otherwise, into one of the numbers with the largest scores."""
        dense = {name: weights_of(model, name) for name in names}
        apply(model, Sparse(names=tuple(names), pattern=pattern.name, sparsity=pattern.sparsity))
        for name in names:
            prefix, _, attribute = name.rpartition(".")
            matrix: Any = getattr(model.get_submodule(prefix), attribute)
            weight = dense.pop(name)
            matrix.fill(weight, self.score(weight.float(), known.get(name)))


def method_of(name: str, options: Mapping[str, Any]) -> Method:
    """The method of that name with these options.

    Raises:
        ValueError: for an unknown name. TypeError: for an option it does not have.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)}; methods: {', '.join(METHODS)}")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]
    if unknown := [option for option in options if option not in fields]:
        raise TypeError(f"{name} has no option {unknown[0]!r}; its options: {', '.join(fields) or 'none'}")
    return METHODS[name](**options)
