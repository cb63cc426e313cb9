"""What a method of compression is: a frozen dataclass of its options that fills one hook or two."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from zoo.layers.quant import Format, Record
from zoo.quantize.store import Store
from zoo.registry import nearest

if TYPE_CHECKING:
    from zoo.quantize.calibration import Calibration

METHODS: dict[str, type[Method]] = {}
GROUP = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method: subclass it as a frozen dataclass, name it, and fill ``prepare``, ``record`` or both.

    Subclasses are registered by ``class MyMethod(Method, name="my_method", calibrated=True)``; the options are their
    fields, and whatever they draw must come from a seed among these.

    Raises:
        ValueError: for options out of range, or a name that is taken.
    """

    calibrated: ClassVar[bool] = False

    bits: int = 4
    """Of a code, 1 to 8."""
    group_size: int | None = None
    """Columns that share a scale; None: the largest divisor of a row's columns up to 32."""
    symmetric: bool = False
    """No zeros are stored: the code of the number 0 is 2^(bits-1)."""
    scale_dtype: str = "bfloat16"
    """Of the stored scales: "bfloat16" or "float32"."""

    def __init_subclass__(cls, name: str, calibrated: bool = False):
        if name in METHODS:
            raise ValueError(f"method {name!r} is already registered")
        METHODS[name] = cls
        cls.calibrated = calibrated

    def __post_init__(self):
        self.format(GROUP)

    def fields(self) -> dict[str, Any]:
        """The options, as JSON has them."""
        return dataclasses.asdict(self)

    def format(self, columns: int) -> Format:
        """How rows of so many columns are kept."""
        size = self.group_size
        if size is None:
            size = next(n for n in range(min(GROUP, columns), 0, -1) if columns % n == 0)
        options = {"symmetric": self.symmetric, "scale_dtype": self.scale_dtype}
        return Format(bits=self.bits, group_size=size, **options)  # type: ignore[arg-type]

    def prepare(
        self, model: nn.Module, names: Sequence[str], calibration: Calibration | None, store: Store
    ) -> Mapping[str, Any]:
        """See the model before its weights go, and change it into one of the same outputs where that helps.

        Args:
            model: in eval mode.
            names: of the weights that will be compressed.
            calibration: the inputs; None for a method without.
            store: keeps what takes long; see ``Store.once``.

        Returns:
            Name of a weight -> what ``record`` shall know of it.
        """
        return {}

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The record of one weight: float32 matrices (..., N, C) in a format, and what ``prepare`` found of it."""
        raise NotImplementedError


def method_of(name: str, options: Mapping[str, Any]) -> Method:
    """The method of that name with these options.

    Raises:
        ValueError: for an unknown name, or options out of range. TypeError: for an option it does not have.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)}; methods: {', '.join(METHODS)}")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]
    for option in options:
        if option not in fields:
            raise TypeError(
                f"{name} has no option {option!r}{nearest(option, fields)}; its options: {', '.join(fields)}"
            )
    return METHODS[name](**options)
