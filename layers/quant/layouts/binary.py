"""Sums of scaled signs: binary codes of several bits, and two planes of zeros and ones."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.kernels.binary_matmul import binary_matmul, dequantise, pack_planes, unpack_planes
from zoo.layers.quant.layouts.bipolar import bits_of
from zoo.layers.quant.layouts.layout import SCALES, Layout, Sizes, Tensors, in_groups, largest, stored

if TYPE_CHECKING:
    from zoo.layers.quant.format import Format

ROUNDS = 15
TILE = 1 << 22  # signs that exist at a time
RIDGE = 1e-6  # of the number of columns: two planes may be the same


class Binary(Layout):
    r""":math:`w = \sum_p \alpha_p b_p + o, \; b_p \in \{-1, 1\}`, with the levels of each group where they are best.

    They start evenly spaced, as integers are (:math:`\alpha_p = 2^p s / 2`); then the scales and the offset that are
    best for the signs, and the nearest levels, are found in turns.

    Paper: Park et al., "LUT-GEMM", arXiv 2206.09557, section 3.1; the alternation: Xu et al., "Alternating Multi-bit
    Quantization", arXiv 1802.00150. The offset is one more unknown of it here.
    """

    has_zero = False
    options = ()

    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """planes (N, bits, bytes), alpha (N, G, bits) and offset (N, G)."""
        groups, dtype = form.groups(columns), SCALES[form.scale_dtype]
        return {
            "planes": ((rows, form.bits, -(-columns // 8)), torch.uint8),
            "alpha": ((rows, groups, form.bits), dtype),
            "offset": ((rows, groups), dtype),
        }

    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The signs and scales of the least squared error of all rounds, the first of which is that of integers; some
        rows after another."""
        rows = max(1, TILE // (matrix.shape[-1] * form.bits))
        parts = [self._encode(part, form) for part in matrix.flatten(0, -2).split(rows)]
        return {name: torch.cat([p[name] for p in parts]).unflatten(0, matrix.shape[:-1]) for name in parts[0]}

    def _encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor]:
        groups, dtype = in_groups(matrix, form), SCALES[form.scale_dtype]  # (N, G, S)
        low, high = groups.amin(-1), groups.amax(-1)
        step = stored((high - low) / (2**form.bits - 1), form).float() / 2
        alpha, offset = step[..., None] * 2 ** torch.arange(form.bits, device=matrix.device), (low + high) / 2
        best, least = None, torch.full_like(low, torch.inf)
        for _ in range(ROUNDS):
            alpha, offset = alpha.to(dtype).float(), offset.to(dtype).float()
            signs, error = nearest_signs(groups, alpha, offset)
            found, better = (alpha, offset, signs), error < least
            best = tuple(map(partial(_where, better), found, best)) if best else found
            least = torch.minimum(error, least)
            alpha, offset = best_scales(groups, signs)
        assert best is not None
        alpha, offset, signs = best
        planes = pack_planes(signs.movedim(-1, -3).flatten(-2) > 0)
        return {"planes": planes, "alpha": alpha.to(dtype), "offset": offset.to(dtype)}

    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Its definition."""
        return dequantise(**tensors, columns=columns)

    def product(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None) -> Tensor:
        """Sums of signs, looked up; wider sums than the numbers have are of the numbers."""
        wide = x.dtype == torch.float64
        return self.dense(x, tensors, form, bias) if wide else binary_matmul(x, **tensors, bias=bias)


class DualBinary(Layout):
    r""":math:`w = \alpha_1 b_1 + \alpha_2 b_2, \; b \in \{0, 1\}`, which start at the levels -s, 0, s and 2 s.

    :math:`\alpha_1 = 2s, \alpha_2 = -s, s = \max |w| / 2`. Most bits are 0, and two scales of a group may learn.

    Paper: Chen et al., "DB-LLM: Accurate Dual-Binarization for Efficient LLMs", arXiv 2402.11960.
    """

    widths, default = range(2, 3), 2
    options = ("outliers",)

    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """planes (N, 2, bytes) and alpha (N, G, 2)."""
        return {
            "planes": ((rows, 2, -(-columns // 8)), torch.uint8),
            "alpha": ((rows, form.groups(columns), 2), SCALES[form.scale_dtype]),
        }

    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The nearest levels."""
        first = stored(largest(matrix, form), form)
        alpha = torch.stack([first, -first / 2], -1)  # (..., N, G, 2)
        return {"planes": pack_planes(dual_bits(in_groups(matrix, form), alpha.float()).flatten(-2)), "alpha": alpha}

    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Its definition."""
        alpha = tensors["alpha"].float()
        bits = unpack_planes(tensors["planes"], columns).float().unflatten(-1, (alpha.shape[-2], -1))
        return (bits * alpha.mT[..., None]).sum(-3).flatten(-2)

    def product(self, x: Tensor, tensors: Tensors, form: Format, bias: Tensor | None) -> Tensor:
        """As signs: b = (1 + sign) / 2."""
        half = tensors["alpha"].float() / 2
        return binary_matmul(x, tensors["planes"], half, half.sum(-1), bias=bias)


def dual_bits(groups: Tensor, alpha: Tensor) -> Tensor:
    """The bits (..., N, 2, G, S) of the levels nearest to groups (..., N, G, S), given alpha (..., N, G, 2)."""
    first, second = (a[..., None] for a in alpha.unbind(-1))
    upper = groups >= (first + second) / 2
    return torch.stack([upper, first * upper - groups + second / 2 >= 0], -3)


def _where(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``torch.where``, with a condition of fewer axes."""
    return torch.where(condition.view(condition.shape + (1,) * (new.dim() - condition.dim())), new, old)


def levels(alpha: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """What all combinations of signs (2^P, P) make of alpha (..., P) and an offset (...): (..., 2^P), and the signs."""
    bits = alpha.shape[-1]
    signs = bits_of(torch.arange(2**bits, device=alpha.device)[None], bits)[0].mT * 2.0 - 1
    return alpha @ signs.mT + offset[..., None], signs


def nearest_signs(groups: Tensor, alpha: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Signs (..., S, P) of the levels nearest to groups (..., S), and the squared error (...)."""
    every, signs = levels(alpha, offset)
    rising, order = every.sort(-1)
    between = (rising[..., 1:] + rising[..., :-1]) / 2
    place = torch.searchsorted(between.contiguous(), groups.contiguous())
    error = (rising.gather(-1, place) - groups).square().sum(-1)
    return signs[order.gather(-1, place)], error


def best_scales(groups: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """alpha (..., P) and offset (...) of the least squared error, given signs (..., S, P) of groups (..., S)."""
    known = torch.cat([signs, torch.ones_like(signs[..., :1])], -1).double()  # (..., S, P + 1)
    gram = known.mT @ known + RIDGE * known.shape[-2] * torch.eye(
        known.shape[-1], dtype=known.dtype, device=known.device
    )
    found = torch.linalg.solve(gram, (known.mT @ groups.double()[..., None])[..., 0]).to(groups.dtype)
    return found[..., :-1], found[..., -1]
