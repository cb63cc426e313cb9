"""How a matrix is kept: what a code stands for, its bits, the block that shares a scale, and what lies beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.quant.inputs import Inputs
from zoo.layers.quant.layouts import LAYOUTS, SCALES

PLAIN = Inputs()
OUTLIERS = ("outlier_index", "outlier_value")
KINDS = {
    "int": ((int,), "an integer"), "float": ((float, int), "a number"), "bool": ((bool,), "True or False"),
    "str": ((str,), "a word"),
}  # fmt: skip
Sizes = dict[str, tuple[tuple[int, ...], torch.dtype] | None]


@dataclass(frozen=True, kw_only=True)
class Format:
    r"""Codes of a few bits with a scale for each block of a matrix; by default integers

    .. math::
        w = s (q - z), \quad 0 \le q < 2^b

    Raises:
        ValueError: for bits outside [1, 8] or that the layout does not have, a group below 1, an unknown dtype or
            layout, an option of another type, or one that the layout does not know.
    """

    bits: int = 4
    """Of a code, 1 to 8."""
    group_size: int | None = 32
    """Columns that share a scale and a zero; None for all of a row."""
    symmetric: bool = False
    """The code of the number 0 is 2^(bits-1), and none is stored."""
    scale_dtype: str = "bfloat16"
    """Of the stored scales: "bfloat16" or "float32"."""
    layout: str = "int"
    """What a code stands for: a name of ``LAYOUTS``."""
    group_rows: int = 1
    """Rows that share a scale and a zero; the last block may have fewer."""
    outliers: int = 0
    """Numbers of each matrix that are kept as they are, in the dtype of the scales, with their places."""
    masked: bool = False
    """A further bit says which numbers are 0, in a layout that has no code for it."""
    activation_bits: int | None = None
    """What multiplies the matrix is rounded to integers of so many bits, a scale a token; None: it is not."""
    base_bits: int = 2
    """Of "nested": bits of its integers, behind which a sign each follows."""
    inputs: Inputs = PLAIN
    """What else is done to what multiplies the matrix; a mapping of its fields is one too."""

    def __post_init__(self):
        if isinstance(self.inputs, Mapping):
            object.__setattr__(self, "inputs", Inputs(**self.inputs))
        check_kinds(self)
        if self.inputs.rounds and self.activation_bits is None:
            raise ValueError(f"inputs are rounded to activation_bits, which are None, got {self.inputs}")
        if type(self.bits) is not int or not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer in [1, 8], got {self.bits!r}")
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 1):
            raise ValueError(f"group_size must be a positive integer or None for a whole row, got {self.group_size!r}")
        if self.scale_dtype not in SCALES:
            raise ValueError(f"scale_dtype must be one of {list(SCALES)}, got {self.scale_dtype!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {list(LAYOUTS)}, got {self.layout!r}")
        layout = LAYOUTS[self.layout]
        if self.bits not in layout.widths:
            raise ValueError(f"layout {self.layout!r} has {_listed(layout.widths)} bits, got bits {self.bits}")
        if not isinstance(self.group_rows, int) or self.group_rows < 1:
            raise ValueError(f"group_rows must be a positive integer, got {self.group_rows!r}")
        if not isinstance(self.outliers, int) or self.outliers < 0:
            raise ValueError(f"outliers must be a number of weights, got {self.outliers!r}")
        if self.activation_bits is not None and self.activation_bits not in layout.activation_widths:
            able = layout.activation_widths
            raise ValueError(
                f"layout {self.layout!r} takes activations of {f'{_listed(able)} bits' if able else 'no few bits'}, "
                f"got activation_bits {self.activation_bits!r}"
            )
        for field in fields(self):
            known = ("bits", "group_size", "scale_dtype", "layout", "activation_bits", *layout.options)
            if field.name not in known and getattr(self, field.name) != field.default:
                raise ValueError(f"layout {self.layout!r} has no {field.name}, got {getattr(self, field.name)!r}")
        own: Any = self
        layout.check(own)

    @property
    def is_plain(self) -> bool:
        """Whether there is a scale for each row and group, and nothing else: no outliers, no rule of inputs."""
        return not self.outliers and self.group_rows == 1 and self.inputs == PLAIN

    def groups(self, columns: int) -> int:
        """Groups of a row; a row no longer than a group is one.

        Raises:
            ValueError: for a group that does not divide the row.
        """
        size = self.group_size
        if size is None or size >= columns:
            return 1
        if columns % size:
            raise ValueError(
                f"group_size must divide the inputs of a layer, got group_size {size} for {columns} inputs: choose "
                "another, or skip the layer"
            )
        return columns // size

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Blocks of a matrix, which share a scale: along its rows and along its columns."""
        return -(-rows // self.group_rows), self.groups(columns)

    def over_rows(self, largest: Tensor) -> Tensor:
        """The largest of what the rows (..., N, G) of each block have, for each of its rows."""
        rows, r = largest.shape[-2], self.group_rows
        if r == 1:
            return largest
        blocks = F.pad(largest, (0, 0, 0, -rows % r), value=-torch.inf).unflatten(-2, (-1, r)).amax(-2)
        return self.to_rows(blocks, rows)

    def to_rows(self, blocks: Tensor, rows: int) -> Tensor:
        """What blocks (..., N / group_rows, G) have, for each of N rows."""
        return blocks if self.group_rows == 1 else blocks.repeat_interleave(self.group_rows, -2)[..., :rows, :]

    def tensors(self, shape: Sequence[int]) -> Sizes:
        """Name -> size and dtype of the tensors of a record of matrices (..., N, C); None for one that is left out."""
        *stack, rows, columns = shape
        own: Any = self
        found = dict(LAYOUTS[self.layout].tensors(own, rows, columns))
        if self.outliers > rows * columns:
            raise ValueError(f"outliers must be at most the {rows * columns} numbers of a matrix, got {self.outliers}")
        if self.outliers:
            kinds = torch.int32, SCALES[self.scale_dtype]
            found |= {name: ((self.outliers,), kind) for name, kind in zip(OUTLIERS, kinds, strict=True)}
        stack = [*([self.inputs.ranges] if self.inputs.times else []), *stack]
        found = {name: kept and ((*stack, *kept[0]), kept[1]) for name, kept in found.items()}
        return found if self.inputs == PLAIN else found | self.inputs.tensors(columns)

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a record of matrices (..., N, C). Of integers: b bits a code, rows filled up to 8 codes, a scale of
        2 or 4 bytes and a zero of one for each block; 4 bytes for the place of an outlier and 2 or 4 for itself."""
        return sum(prod(size) * dtype.itemsize for size, dtype in filter(None, self.tensors(shape).values()))


def check_kinds(options: Any) -> None:
    """Raise a ValueError for a number, a switch or a word among the fields of a dataclass that is of another type than
    the field is, or for one that is no number (NaN)."""
    for field in fields(options):
        value, kind = getattr(options, field.name), str(field.type).removesuffix(" | None")
        if kind not in KINDS or (value is None and kind != field.type):
            continue
        held, wanted = KINDS[kind]
        if type(value) not in held or value != value:
            none = " or None" if kind != field.type else ""
            raise ValueError(f"{field.name} must be {wanted}{none}, got {value!r}")


def _listed(widths: Sequence[int]) -> str:
    return str(widths[0]) if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
