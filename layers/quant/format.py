"""How a matrix is kept: bits of a code, columns that share a scale, and what a scale and a zero take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from zoo.kernels.lowbit_matmul import row_bytes

SCALES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Format:
    r"""Integers of a few bits with a scale s, and a zero z unless symmetric, for each group of a row's columns.

    .. math::
        w = s (q - z), \quad 0 \le q < 2^b

    Raises:
        ValueError: for bits outside [1, 8], a group below 1, or an unknown dtype.
    """

    bits: int = 4
    """Of a code, 1 to 8."""
    group_size: int | None = 32
    """Columns that share a scale and a zero; None for all of a row."""
    symmetric: bool = False
    """The code of the number 0 is 2^(bits-1), and none is stored."""
    scale_dtype: str = "bfloat16"
    """Of the stored scales: "bfloat16" or "float32"."""

    def __post_init__(self):
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer in [1, 8], got {self.bits!r}")
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 1):
            raise ValueError(f"group_size must be a positive integer or None for a whole row, got {self.group_size!r}")
        if self.scale_dtype not in SCALES:
            raise ValueError(f"scale_dtype must be one of {list(SCALES)}, got {self.scale_dtype!r}")

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

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a record of matrices (..., N, C): b bits a code, rows filled up to 8 codes, a scale of 2 or 4 bytes
        and a zero of one byte for each group."""
        *rows, columns = shape
        side = SCALES[self.scale_dtype].itemsize + (not self.symmetric)
        return prod(rows) * (row_bytes(columns, self.bits) + self.groups(columns) * side)
