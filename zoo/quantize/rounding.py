"""Rounding to the nearest code: the baseline, and the last step of most methods."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from zoo.layers.quant import Format, Record
from zoo.layers.quant.format import SCALES
from zoo.quantize.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class RTN(Method, name="rtn"):
    r"""Round to nearest, with the range of each group from its smallest to its largest weight.

    .. math::
        s = \frac{\max(w, 0) - \min(w, 0)}{2^b - 1}, \; z = \mathrm{round}(-\min(w, 0) / s), \;
        q = \mathrm{clamp}(\mathrm{round}(w / s) + z, 0, 2^b - 1)

    and for symmetric codes :math:`s = \max|w| / (2^{b-1} - 1)`, :math:`z = 2^{b-1}`.
    """

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The nearest codes within the range of each group."""
        return nearest_codes(matrix, *grid(matrix, form), form)


def grid(matrix: Tensor, form: Format) -> tuple[Tensor, Tensor | None]:
    """Scales as they are stored, and zeros, None if symmetric, (..., N, G) from the range of each group of a matrix
    (..., N, C)."""
    groups = matrix.unflatten(-1, (form.groups(matrix.shape[-1]), -1))
    if form.symmetric:
        steps = max(2 ** (form.bits - 1) - 1, 1)
        return _stored(groups.abs().amax(-1) / steps, form), None
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = _stored((high - low) / (2**form.bits - 1), form)
    return scale, (-low / scale.float()).round().clamp(0, 2**form.bits - 1).to(torch.uint8)


def nearest_codes(matrix: Tensor, scale: Tensor, zero: Tensor | None, form: Format) -> Record:
    """The record of the nearest codes of a matrix (..., N, C), given scales and zeros (..., N, G)."""
    groups = matrix.unflatten(-1, (scale.shape[-1], -1))
    centre: Any = 2 ** (form.bits - 1) if zero is None else zero[..., None].float()
    q = (groups / scale[..., None].float()).round() + centre
    return Record.of(q.clamp(0, 2**form.bits - 1).to(torch.uint8).flatten(-2), scale, zero, form)


def _stored(scale: Tensor, form: Format) -> Tensor:
    """In the stored dtype; 1 where all weights are zero."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).to(SCALES[form.scale_dtype])
