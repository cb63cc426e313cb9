"""What a method of pruning is: a frozen dataclass of its options that scores the numbers of a matrix."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from zoo.registry import nearest

if TYPE_CHECKING:
    from zoo.quantize.calibration import Calibration

METHODS: dict[str, type[Method]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(ABC):
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

    def see(self, model: nn.Module, names: Sequence[str], calibration: Calibration | None) -> Mapping[str, Any]:
        """Name of a weight -> what ``score`` shall know of it; the model is in eval mode and stays as it is."""
        return {}

    @abstractmethod
    def score(self, matrix: Tensor, known: Any) -> Tensor:
        """What the numbers of a matrix (N, C), or of matrices (E, N, C), are worth: the largest are kept."""


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
