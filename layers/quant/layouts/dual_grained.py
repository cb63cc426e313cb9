"""Integers of a few bits whose groups are scaled to integers of eight, and those by one number a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.kernels.integer_matmul import integer_products, quantised_rows
from zoo.kernels.lowbit_matmul import lowbit_matmul, pack, row_bytes, unpack
from zoo.layers.quant.layouts.integer import grid
from zoo.layers.quant.layouts.layout import SCALES, Layout, Sizes, Tensors, stored

if TYPE_CHECKING:
    from zoo.layers.quant.format import Format

TOP = 127  # of an integer of eight bits, in both directions


class DualGrained(Layout):
    r""":math:`w = S \, s_g (q - z_g)` with :math:`s_g (q - z_g)` in [-127, 127]: a product with activations of eight
    bits is one of integers, scaled once a row.

    Paper: Zhang et al., "Dual Grained Quantization: Efficient Fine-Grained Quantization for LLM", arXiv 2310.04836.
    """

    activation_widths = range(2, 9)
    options = ()

    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """codes (N, bytes), fine and zero (N, G) of a byte, and coarse (N, 1)."""
        groups = form.groups(columns)
        return {
            "codes": ((rows, row_bytes(columns, form.bits)), torch.uint8),
            "fine": ((rows, groups), torch.uint8),
            "zero": ((rows, groups), torch.uint8),
            "coarse": ((rows, 1), SCALES[form.scale_dtype]),
        }

    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The nearest codes, with scales from the range of each group and the largest weight of each row."""
        scale, zero = grid(matrix, form)
        assert zero is not None
        coarse = stored(matrix.abs().amax(-1, keepdim=True) / TOP, form)
        fine, q = fine_codes(matrix, scale, zero, coarse)
        return {"codes": pack(limited(q, fine, zero, form).flatten(-2), form.bits), "fine": fine, "zero": zero,
                "coarse": coarse}  # fmt: skip

    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Its definition."""
        return self.integers(tensors, form, columns) * tensors["coarse"].float()

    def integers(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Those of eight bits (..., N, C), float32."""
        q = unpack(tensors["codes"], form.bits, columns).float().unflatten(-1, (tensors["fine"].shape[-1], -1))
        return (tensors["fine"].float()[..., None] * (q - tensors["zero"].float()[..., None])).flatten(-2)

    def matmul(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None = None) -> Tensor:
        """Straight from the codes, with gradients too."""
        if form.activation_bits is not None:
            return super().matmul(x, tensors, form, bias)
        scale = tensors["fine"].float() * tensors["coarse"].float()
        return lowbit_matmul(x, tensors["codes"], scale, tensors["zero"], bits=form.bits, bias=bias)

    def integer_product(self, x: Tensor, tensors: Tensors, form: Format) -> Tensor:
        """One sum of integers a row."""
        v, s = quantised_rows(x, form.activation_bits or 8)
        q = (self.integers(tensors, form, x.shape[-1]) + 128).to(torch.uint8)
        return integer_products(v, s, pack(q, 8), tensors["coarse"], bits=8)


def fine_codes(matrix: Tensor, scale: Tensor, zero: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """The scales of groups as integers (..., N, G), and codes (..., N, G, S) that may be out of range, of matrices
    (..., N, C) with scales and zeros (..., N, G) and one number a row (..., N, 1)."""
    fine = (scale.float() / coarse.float()).round().clamp(1, TOP)
    step = (fine * coarse.float())[..., None]
    groups = matrix.unflatten(-1, (scale.shape[-1], -1))
    return fine.to(torch.uint8), (groups / step).round() + zero.float()[..., None]


def limited(q: Tensor, fine: Tensor, zero: Tensor, form: Format) -> Tensor:
    """Codes within their bits, and such that their integers are within those of eight bits."""
    most, centre = (TOP // fine.to(torch.int16))[..., None], zero.to(torch.int16)[..., None]
    low, high = (centre - most).clamp(min=0), (centre + most).clamp(max=2**form.bits - 1)
    return torch.minimum(torch.maximum(q, low.to(q)), high.to(q)).to(torch.uint8)
