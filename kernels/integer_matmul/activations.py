"""Activations as integers, with a scale for each token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.dispatch import compute_dtype


class QuantisedRows(NamedTuple):
    """Integers (M, C) and their scales (M, 1), float32 or wider: x is near their product."""

    values: Tensor
    scale: Tensor


def quantised_rows(x: Tensor, bits: int, *, odd: bool = False) -> QuantisedRows:
    r"""Each token rounded to the nearest integers, its largest number to the largest of them.

    .. math::
        v = \mathrm{round}(x / s), \; s = \max |x| / (2^{b-1} - 1); \quad
        \text{odd: } v = 2 \, \mathrm{round}(\tfrac{x / s - 1}{2}) + 1, \; s = \max |x| / (2^b - 1)

    Args:
        x: (M, C), any floating dtype.
        bits: b of an integer: 2 to 8, or 1 to 8 of odd ones.
        odd: the odd integers between -(2^b - 1) and 2^b - 1, of which 0 is none.

    Returns:
        int16 values (they hold the odd ones of 8 bits), and scales, NaN of a token with a number that is not finite.
    """
    wide, top = x.to(compute_dtype(x)), 2**bits - 1 if odd else 2 ** (bits - 1) - 1
    scale = wide.abs().amax(-1, keepdim=True) / top
    scale = scale.masked_fill(scale == 0, 1) + 0 * scale  # NaN where one is not finite
    v = wide / scale
    v = 2 * ((v - 1) / 2).round() + 1 if odd else v.round()
    return QuantisedRows(v.clamp(-top, top).to(torch.int16), scale)
