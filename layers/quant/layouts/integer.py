"""Integers with a scale, and a zero unless symmetric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.kernels.integer_matmul import integer_products, quantised_rows
from zoo.kernels.lowbit_matmul import dequantise, lowbit_matmul, pack, row_bytes
from zoo.layers.quant.layouts.layout import SCALES, Layout, Sizes, Tensors, in_groups, largest, stored

if TYPE_CHECKING:
    from zoo.layers.quant.format import Format


class Integer(Layout):
    r""":math:`w = s (q - z), \; 0 \le q < 2^b`; :math:`z = 2^{b-1}` of symmetric ones, which store none."""

    activation_widths = range(2, 9)
    options = (*Layout.options, "symmetric", "inputs")

    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """codes (N, bytes), scale and zero (N, G)."""
        grid = form.grid(rows, columns)
        return {
            "codes": ((rows, row_bytes(columns, form.bits)), torch.uint8),
            "scale": (grid, SCALES[form.scale_dtype]),
            "zero": None if form.symmetric else (grid, torch.uint8),
        }

    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The nearest codes within the range of each group."""
        scale, zero = grid(matrix, form)
        return {"codes": pack(nearest(matrix, scale, zero, form), form.bits), "scale": scale, "zero": zero}

    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Its definition."""
        return dequantise(**tensors, bits=form.bits, columns=columns)

    def matmul(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None = None) -> Tensor:
        """Straight from the codes, with gradients too."""
        if form.activation_bits is not None:
            return super().matmul(x, tensors, form, bias)
        return lowbit_matmul(x, **tensors, bits=form.bits, bias=bias)

    def integer_product(self, x: Tensor, tensors: Tensors, form: Format) -> Tensor:
        """Groups are dequantised after the product (MixPE)."""
        v, s = quantised_rows(x, form.activation_bits or 8)
        return integer_products(v, s, **tensors, bits=form.bits)


def grid(matrix: Tensor, form: Format) -> tuple[Tensor, Tensor | None]:
    """Scales as they are stored, and zeros, None if symmetric, (..., N, G) from the range of each group of a matrix
    (..., N, C)."""
    if form.symmetric:
        return stored(largest(matrix, form) / max(2 ** (form.bits - 1) - 1, 1), form), None
    return grid_of_bits(matrix, form, form.bits)


def grid_of_bits(matrix: Tensor, form: Format, bits: int) -> tuple[Tensor, Tensor]:
    """The same of so many bits, with zeros."""
    groups = in_groups(matrix, form)
    low = -form.over_rows(-groups.amin(-1).clamp(max=0))
    high = form.over_rows(groups.amax(-1).clamp(min=0))
    scale = stored((high - low) / (2**bits - 1), form)
    return scale, (-low / scale.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)


def nearest(matrix: Tensor, scale: Tensor, zero: Tensor | None, form: Format) -> Tensor:
    """The nearest codes (..., N, C) of a matrix, given scales and zeros (..., N, G)."""
    return nearest_of_bits(matrix, scale, zero, form.bits)


def nearest_of_bits(matrix: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """The same of so many bits."""
    groups = matrix.unflatten(-1, (scale.shape[-1], -1))
    centre: Any = 2 ** (bits - 1) if zero is None else zero[..., None].float()
    q = (groups / scale[..., None].float()).round() + centre
    return q.clamp(0, 2**bits - 1).to(torch.uint8).flatten(-2)
