"""Rounding to the nearest code: the baseline, and the last step of most methods."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from zoo.layers.quant import Format, Record
from zoo.layers.quant.layouts import grid, nearest
from zoo.quantize.method import Method

__all__ = ["RTN", "grid", "nearest_codes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RTN(Method, name="rtn", any_layout=True):
    r"""Round to nearest, with the range of each group from its smallest to its largest weight. Of integers

    .. math::
        s = \frac{\max(w, 0) - \min(w, 0)}{2^b - 1}, \; z = \mathrm{round}(-\min(w, 0) / s), \;
        q = \mathrm{clamp}(\mathrm{round}(w / s) + z, 0, 2^b - 1)

    and for symmetric codes :math:`s = \max|w| / (2^{b-1} - 1)`, :math:`z = 2^{b-1}`; other layouts say what is nearest.
    """

    def record(self, matrix: Tensor, form: Format, known: Any) -> Record:
        """The nearest codes within the range of each group."""
        return Record.nearest(matrix, form)


def nearest_codes(matrix: Tensor, scale: Tensor, zero: Tensor | None, form: Format) -> Record:
    """The record of the nearest integers of a matrix (..., N, C), given scales and zeros (..., N, G)."""
    return Record.of(nearest(matrix, scale, zero, form), scale, zero, form)
