"""What a method of compression is: a frozen dataclass of its options that fills one hook or two."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from zoo.layers.quant import LAYOUTS, Format, Record
from zoo.layers.quant.format import check_kinds
from zoo.quantize.store import Store
from zoo.registry import nearest

if TYPE_CHECKING:
    from zoo.quantize.calibration import Calibration

METHODS: dict[str, type[Method]] = {}
GROUP = 32
LEAST = 16  # columns of a group that nobody asked for: the scales of smaller ones weigh more than the codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A method: subclass it as a frozen dataclass, name it, and fill ``prepare``, ``record`` or both.

    Subclasses are registered by ``class MyMethod(Method, name="my_method", calibrated=True)``; the options are their
    fields, and whatever they draw must come from a seed among these. One that makes no more of integers than
    ``Record.nearest`` does of any layout says ``any_layout=True``.

    Raises:
        ValueError: for options out of range, or a name that is taken.
    """

    calibrated: ClassVar[bool] = False
    any_layout: ClassVar[bool] = False

    bits: int = dataclasses.field(default=None)  # type: ignore[assignment]
    """Of a code, 1 to 8; None: as the layout has them, 4 of integers."""
    group_size: int | None = None
    """Columns that share a scale; None: the largest divisor of a row's columns from 16 to 32, where there is none, and
    in rows up to 32 and of tables, all of them."""
    symmetric: bool = False
    """No zeros are stored: the code of the number 0 is 2^(bits-1)."""
    scale_dtype: str = "bfloat16"
    """Of the stored scales: "bfloat16" or "float32"."""
    layout: str = "int"
    """What a code stands for: a name of ``zoo.layers.quant.LAYOUTS``."""
    group_rows: int = 1
    """Rows that share a scale."""
    masked: bool = False
    """A further bit says which weights are 0, in a layout that has no code for it."""
    activation_bits: int | None = None
    """What multiplies the matrices of linear layers and experts is rounded to so many bits; None: it is not."""
    base_bits: int = 2
    """Of layout "nested": the smallest width that weights may be read in."""

    def __init_subclass__(cls, name: str, calibrated: bool = False, any_layout: bool = False):
        if name in METHODS:
            raise ValueError(f"method {name!r} is already registered")
        METHODS[name] = cls
        cls.calibrated, cls.any_layout = calibrated, any_layout

    def __post_init__(self):
        if self.bits is None:
            object.__setattr__(self, "bits", LAYOUTS[self.layout].default if self.layout in tuple(LAYOUTS) else 4)
        check_kinds(self)
        if self.layout != "int" and not self.any_layout:
            able = [name for name, kind in METHODS.items() if kind.any_layout]
            raise ValueError(f"only {', '.join(able)} know other layouts than 'int', got layout {self.layout!r}")
        self.format(GROUP)

    def fields(self) -> dict[str, Any]:
        """The options, as JSON has them."""
        return dataclasses.asdict(self)

    def format(self, columns: int) -> Format:
        """How rows of so many columns are kept."""
        size = self.group_size
        if size is None:
            most = (LAYOUTS[self.layout].group if self.layout in LAYOUTS else GROUP) or columns
            whole = min(most, columns)
            size = next((n for n in range(whole, min(whole, LEAST) - 1, -1) if columns % n == 0), columns)
        return Format(
            bits=self.bits, group_size=size, symmetric=self.symmetric, scale_dtype=self.scale_dtype,
            layout=self.layout, group_rows=self.group_rows, masked=self.masked, activation_bits=self.activation_bits,
            base_bits=self.base_bits,
        )  # fmt: skip

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError for a model that the method does not know."""

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
        ValueError: for an unknown name, or options out of range. TypeError: for a name that is none, or an option it
            does not have.
    """
    if not isinstance(name, str):
        raise TypeError(f"method must be a name, got {name!r}; methods: {', '.join(METHODS)}")
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)}; methods: {', '.join(METHODS)}")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]
    for option in options:
        if option not in fields:
            raise TypeError(
                f"{name} has no option {option!r}{nearest(option, fields)}; its options: {', '.join(fields)}"
            )
    return METHODS[name](**options)
