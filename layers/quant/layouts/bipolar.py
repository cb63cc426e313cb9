"""Odd integers as planes of signs, multiplied bit by bit with activations of the same kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.kernels.binary_matmul import binary_matmul, pack_planes, unpack_planes
from zoo.kernels.integer_matmul import bit_serial_products, quantised_rows, scaled_products
from zoo.kernels.integer_matmul.bit_serial import odd_integers
from zoo.layers.quant.layouts.layout import SCALES, Layout, Sizes, Tensors, in_groups, largest, stored

if TYPE_CHECKING:
    from zoo.layers.quant.format import Format


class Bipolar(Layout):
    r""":math:`w = s \sum_i 2^i b_i, \; b_i \in \{-1, 1\}`: the odd integers of b bits, of which 0 is none.

    A mask says which weights are 0. Paper: "Efficient Arbitrary Precision Acceleration for Large Language Models on GPU
    Tensor Cores", arXiv 2409.17870.
    """

    has_zero = False
    activation_widths = range(1, 9)
    odd = True
    options = ("group_rows", "masked")

    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """planes (N, bits, bytes), scale (N, G) and mask (N, bytes)."""
        size = -(-columns // 8)
        return {
            "planes": ((rows, form.bits, size), torch.uint8),
            "scale": (form.grid(rows, columns), SCALES[form.scale_dtype]),
            "mask": ((rows, size), torch.uint8) if form.masked else None,
        }

    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The nearest odd integers."""
        top = 2**form.bits - 1
        scale = stored(largest(matrix, form) / top, form)
        q = ((in_groups(matrix, form) / scale.float()[..., None] + top) / 2).round().clamp(0, top).flatten(-2)
        planes = pack_planes(bits_of(q, form.bits))
        return {"planes": planes, "scale": scale, "mask": pack_planes(matrix != 0) if form.masked else None}

    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Its definition."""
        scale = tensors["scale"].float()[..., None]
        w = (scale * odd_integers(tensors["planes"], columns).unflatten(-1, (scale.shape[-2], -1))).flatten(-2)
        return w if tensors["mask"] is None else w * unpack_planes(tensors["mask"], columns)

    def product(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None) -> Tensor:
        """Sums of signs, looked up."""
        if form.masked:
            return self.dense(x, tensors, form, bias)
        alpha = tensors["scale"].float()[..., None] * 2 ** torch.arange(form.bits, device=x.device)
        return binary_matmul(x, tensors["planes"], alpha, bias=bias)

    def integer_product(self, x: Tensor, tensors: Tensors, form: Format) -> Tensor:
        """Bits of x against bits of the matrix."""
        bits, columns, scale = form.activation_bits or 8, x.shape[-1], tensors["scale"]
        v, s = quantised_rows(x, bits, odd=True)
        groups = scale.shape[-1]
        if groups > 1 and columns // groups % 8:
            ones = self.dequantise({**tensors, "scale": torch.ones_like(scale)}, form, columns)
            return scaled_products(v, s, scale, ones.__getitem__)
        planes = pack_planes(bits_of((v + 2**bits - 1) // 2, bits))
        return bit_serial_products(planes, s, tensors["planes"], scale, tensors["mask"], columns=columns)


def bits_of(q: Tensor, bits: int) -> Tensor:
    """Integers (..., C) -> their bits (..., bits, C), the lowest first."""
    return q.to(torch.int16)[..., None, :] >> torch.arange(bits, device=q.device, dtype=torch.int16)[:, None] & 1
