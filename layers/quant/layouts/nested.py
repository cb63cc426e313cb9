"""Integers of a few bits, and a sign for each further bit: fewer bits are a part of the same tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.kernels.binary_matmul import binary_matmul, pack_planes, unpack_planes
from zoo.kernels.lowbit_matmul import dequantise, lowbit_matmul, pack, row_bytes
from zoo.layers.quant.layouts.integer import grid_of_bits, nearest_of_bits
from zoo.layers.quant.layouts.layout import SCALES, Layout, Sizes, Tensors, in_groups

if TYPE_CHECKING:
    from zoo.layers.quant.format import Format


class Nested(Layout):
    r""":math:`w_k = s (q - z) + \sum_{j \le k} s_j b_j, \; b_j \in \{-1, 1\}`, with q of ``base_bits`` bits.

    Each b_j is the sign of what is left over, and s_j its mean magnitude in a group, which lowers the squared error of
    every group by :math:`s_j^2` a weight. Each further bit is a pair of tensors of its own, "plane1" and "step1" and so
    on: at a smaller ``width`` those behind it are neither read nor missed.

    Paper: "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving", arXiv 2504.15299,
    matryoshka weight quantisation; without its compensation of errors.
    """

    has_zero = False
    widths = range(3, 9)
    options = ("base_bits",)

    def check(self, form: Format) -> None:
        """Fewer bits than all are the base."""
        if not 1 <= form.base_bits < form.bits:
            raise ValueError(
                f"base_bits must lie in [1, {form.bits - 1}] for bits {form.bits} of layout 'nested', got "
                f"{form.base_bits}"
            )

    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """codes (N, bytes), scale and zero (N, G); plane (N, bytes) and step (N, G) of each further bit."""
        grid, dtype = (rows, form.groups(columns)), SCALES[form.scale_dtype]
        found: Sizes = {
            "codes": ((rows, row_bytes(columns, form.base_bits)), torch.uint8),
            "scale": (grid, dtype),
            "zero": (grid, torch.uint8),
        }
        for level in range(1, form.bits - form.base_bits + 1):
            found |= {f"plane{level}": ((rows, -(-columns // 8)), torch.uint8), f"step{level}": (grid, dtype)}
        return found

    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The nearest codes within the range of each group, then signs of what is left."""
        scale, zero = grid_of_bits(matrix, form, form.base_bits)
        codes = pack(nearest_of_bits(matrix, scale, zero, form.base_bits), form.base_bits)
        found: dict[str, Tensor | None] = {"codes": codes, "scale": scale, "zero": zero}
        left = matrix - dequantise(codes, scale, zero, bits=form.base_bits, columns=matrix.shape[-1])
        for level in range(1, form.bits - form.base_bits + 1):
            step = in_groups(left, form).abs().mean(-1).to(SCALES[form.scale_dtype])
            found |= {f"plane{level}": pack_planes(left >= 0), f"step{level}": step}
            left = left - (torch.where(in_groups(left, form) >= 0, 1.0, -1.0) * step.float()[..., None]).flatten(-2)
        return found

    def narrowed(self, tensors: Tensors, form: Format, width: int) -> dict[str, Any]:
        """Without the planes of bits beyond ``width``."""
        levels = range(1, width - form.base_bits + 1)
        kept = {"codes", "scale", "zero", *(f"{name}{level}" for name in ("plane", "step") for level in levels)}
        return {name: tensor for name, tensor in tensors.items() if name in kept}

    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Its definition."""
        w = dequantise(tensors["codes"], tensors["scale"], tensors["zero"], bits=form.base_bits, columns=columns)
        for plane, step in _levels(tensors):
            signs = unpack_planes(plane, columns).float() * 2 - 1
            w = w + (in_groups(signs, form) * step.float()[..., None]).flatten(-2)
        return w

    def product(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None) -> Tensor:
        """That of the integers, and sums of signs, looked up; wider sums than the numbers have are of the numbers."""
        if x.dtype == torch.float64:
            return self.dense(x, tensors, form, bias)
        codes, scale, zero = (tensors[name] for name in ("codes", "scale", "zero"))
        y = lowbit_matmul(x, codes, scale, zero, bits=form.base_bits, bias=bias)
        for plane, step in _levels(tensors):
            y = y + binary_matmul(x, plane[:, None], step.float()[..., None])
        return y


def _levels(tensors: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Planes and their steps, the first one first."""
    count = sum(name.startswith("plane") for name in tensors)
    return [(tensors[f"plane{level}"], tensors[f"step{level}"]) for level in range(1, count + 1)]
