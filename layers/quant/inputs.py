"""What multiplies a compressed matrix: divided, turned and rounded before the product.

.. math::
    W x = \\big( W \\, \\mathrm{diag}(c) \\, R \\big) \\, \\big( R^T \\, \\mathrm{diag}(1 / c) \\, x \\big)

for any positive c and orthogonal R; the matrix that is kept is the first factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.quant.rounded import Straight

INPUTS = ("input_scale", "input_zero", "balance")
Sizes = dict[str, tuple[tuple[int, ...], torch.dtype] | None]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Rules for the inputs of a matrix; by default none but a scale a token.

    Raises:
        ValueError: for parts, tokens or times out of range.
    """

    zeros: bool = False
    """A token has a zero besides its scale, for a range that is not symmetric."""
    parts: tuple[int, ...] = ()
    """Channels of slices that have a stored scale and zero each, whatever comes; empty: a scale a token."""
    first: int = 0
    """The first tokens of a sequence that are not rounded."""
    times: tuple[float, ...] = ()
    """Rising times between 0 and 1 that separate ranges of diffusion, each with codes and factors of its own."""
    balanced: bool = False
    """Channels are divided by stored factors, by which the matrix's columns are multiplied."""
    rotated: bool = False
    """Channels are turned by ``turned``."""

    def __post_init__(self):
        for field in ("parts", "times"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if min((*self.parts, 1)) < 1 or self.first < 0:
            raise ValueError(f"parts must be positive and first at least 0, got {self.parts} and {self.first}")
        if list(self.times) != sorted({t for t in self.times if 0 < t < 1}):
            raise ValueError(f"times must rise between 0 and 1, got {self.times}")

    @property
    def ranges(self) -> int:
        """Ranges of times."""
        return len(self.times) + 1

    @property
    def rounds(self) -> bool:
        """Whether rounding has a rule of its own."""
        return self.zeros or bool(self.parts) or self.first > 0

    def tensors(self, columns: int) -> Sizes:
        """Name -> size and dtype of what is stored for a matrix of so many columns.

        Raises:
            ValueError: for parts that are not its channels: of a convolution each has several columns.
        """
        if self.parts and columns % sum(self.parts):
            raise ValueError(f"parts must sum to the channels of the inputs, got {self.parts} for {columns} columns")
        count = (len(self.parts),)
        return {
            "input_scale": (count, torch.float32) if self.parts else None,
            "input_zero": (count, torch.uint8) if self.parts else None,
            "balance": ((self.ranges, columns), torch.float32) if self.balanced else None,
        }

    def moved(self, x: Tensor, balance: Tensor | None) -> Tensor:
        """x (..., C) divided by factors (C,) and turned."""
        if balance is not None:
            x = x / balance.to(x)
        return turned(x) if self.rotated else x

    def moved_columns(self, matrix: Tensor, balance: Tensor | None) -> Tensor:
        """The matrix (..., N, C) whose product with what ``moved`` makes of x is that of ``matrix`` with x."""
        if balance is not None:
            matrix = matrix * balance.to(matrix)
        return turned(matrix) if self.rotated else matrix

    def columns_back(self, matrix: Tensor, balance: Tensor | None) -> Tensor:
        """The inverse of ``moved_columns``."""
        matrix = turned(matrix, back=True) if self.rotated else matrix
        return matrix if balance is None else matrix / balance.to(matrix)

    def rounded(self, x: Tensor, bits: int, stored: Mapping[str, Any], axis: int = -1) -> Tensor:
        """x (..., C, ...) with channels along an axis, rounded to 2^bits levels; the gradient passes
        straight through."""
        wide = x.detach().movedim(axis, -1).to(compute_dtype(x))
        if self.parts:
            sizes = torch.tensor(self.parts, device=x.device)
            scale, zero = (stored[name].to(wide).repeat_interleave(sizes) for name in INPUTS[:2])
        else:
            scale, zero = token_grid(wide, bits)
        found = scale * ((wide / scale).round().add_(zero).clamp_(0, 2**bits - 1).sub_(zero))
        if self.first:
            found = torch.cat([wide[..., : self.first, :], found[..., self.first :, :]], -2)
        return Straight.apply(x, found.movedim(-1, axis).to(x.dtype))  # type: ignore[return-value]


def token_grid(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero (..., 1) of each token (..., C) from its smallest and largest number."""
    return affine_grid(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), bits)


def affine_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and integer zeros of ranges, which are made to hold 0."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def turned(x: Tensor, back: bool = False) -> Tensor:
    r"""x (..., C) times an orthogonal matrix, of :math:`C = m 2^k` with odd m that of cosines of order m times
    Hadamard's of order :math:`2^k`: every channel goes into all of them, with the same weight where m is 1.

    Args:
        x: any floating dtype.
        back: times the transpose.
    """
    columns = x.shape[-1]
    power = columns & -columns
    cosines, hadamard = cosine_matrix(columns // power), hadamard_matrix(power)
    left = (cosines.mT if back else cosines).to(x)
    return torch.einsum("ca,...ab,bd->...cd", left, x.unflatten(-1, (-1, power)), hadamard.to(x)).flatten(-2)


def hadamard_matrix(order: int) -> Tensor:
    """Orthogonal and symmetric, float64; entries of one size. The order is a power of two."""
    found = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < order:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / math.sqrt(order)


def cosine_matrix(order: int) -> Tensor:
    """Orthogonal, float64: the discrete cosine transform."""
    place = torch.arange(order, dtype=torch.float64)
    found = (math.pi / order * (place[None] + 0.5) * place[:, None]).cos() * math.sqrt(2 / order)
    found[0] /= math.sqrt(2)
    return found
