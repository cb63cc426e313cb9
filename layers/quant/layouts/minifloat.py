"""Floating-point numbers of 4 and 8 bits with a scale for each group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.kernels.common.minifloat import Minifloat
from zoo.kernels.lowbit_matmul import pack, row_bytes
from zoo.kernels.minifloat_matmul import dequantise, minifloat_matmul
from zoo.kernels.minifloat_matmul.reference import numbers
from zoo.layers.quant.layouts.layout import SCALES, Layout, Sizes, Tensors, in_groups, largest, stored

if TYPE_CHECKING:
    from zoo.layers.quant.format import Format


class MinifloatLayout(Layout):
    r""":math:`w = s \, \mathrm{value}(q)`; the scale takes the largest weight of a group to the largest number.

    Paper: "Low-Bitwidth Floating Point Quantization for Efficient High-Quality Diffusion Models", arXiv 2408.06995.
    """

    def __init__(self, kind: Minifloat):
        self.kind = kind
        self.widths, self.default = range(kind.bits, kind.bits + 1), kind.bits
        numbers(kind)  # which are kept, and are made before a trace would make what is no tensor

    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """codes (N, bytes) and scale (N, G)."""
        return {
            "codes": ((rows, row_bytes(columns, form.bits)), torch.uint8),
            "scale": (form.grid(rows, columns), SCALES[form.scale_dtype]),
        }

    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The nearest numbers."""
        scale = stored(largest(matrix, form) / self.kind.largest, form)
        return {"codes": pack(self.codes(matrix, scale, form).flatten(-2), form.bits), "scale": scale}

    def codes(self, matrix: Tensor, scale: Tensor, form: Format) -> Tensor:
        """The codes (..., N, G, columns of a group) of the nearest numbers of a matrix (..., N, C), given scales."""
        found = self.kind.round(in_groups(matrix, form) / scale.float()[..., None], saturate=True).double()
        magnitude = torch.searchsorted(self.kind.numbers().to(found.device), found.abs().contiguous())
        return (magnitude + (found < 0) * 2 ** (self.kind.bits - 1)).to(torch.uint8)

    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Its definition."""
        return dequantise(**tensors, kind=self.kind, columns=columns)

    def product(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None) -> Tensor:
        """Straight from the codes."""
        return minifloat_matmul(x, **tensors, kind=self.kind, bias=bias)


# named as by the Open Compute Project, whose codes these are: of e4m3 and e5m2 torch's float8_e4m3fn and float8_e5m2
MINIFLOATS = {
    "e4m3": MinifloatLayout(Minifloat(4, 3, 448.0)),
    "e5m2": MinifloatLayout(Minifloat(5, 2)),
    "e2m1": MinifloatLayout(Minifloat(2, 1, 6.0)),
    "e3m0": MinifloatLayout(Minifloat(3, 0, 16.0)),
}
