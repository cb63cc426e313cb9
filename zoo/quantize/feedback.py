"""Rounding column after column, the error of each passed on to those that follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.layers.quant import Format
from zoo.layers.quant.layouts import nearest
from zoo.quantize.moments import damped, output_error


def feedback_codes(matrix: Tensor, scale: Tensor, zero: Tensor | None, form: Format, moment: Tensor | None) -> Tensor:
    r"""Codes (..., N, C) within given grids. With U the upper Cholesky factor of the inputs' inverse second moment

    .. math::
        e_j = (w_j - \hat w_j) / U_{jj}, \quad w_k \leftarrow w_k - e_j U_{jk}, \; k > j

    Rows whose outputs on the calibration are no better so keep their nearest codes.

    Args:
        matrix: (..., N, C).
        scale, zero: (..., N, G); zero is None for symmetric codes.
        form: of layout "int".
        moment: of the inputs (C, C), or (..., C, C) of each matrix; None where they are not known: the codes are the
            nearest.

    Paper: Frantar et al., "GPTQ", arXiv 2210.17323, algorithm 1, without its blocks.
    """
    plain = nearest(matrix, scale, zero, form)
    if moment is None:
        return plain
    columns, top = matrix.shape[-1], 2**form.bits - 1
    centre: Any = 2 ** (form.bits - 1) if zero is None else zero.float()
    size = columns // scale.shape[-1]
    h = damped(moment, columns).double()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    left, found = matrix.clone(), torch.empty_like(plain)
    for j in range(columns):
        s = scale[..., j // size].float()
        z = centre if zero is None else centre[..., j // size]
        q = ((left[..., j] / s).round() + z).clamp(0, top)
        error = (left[..., j] - s * (q - z)) / upper[..., None, j, j]
        left[..., j + 1 :] -= error[..., None] * upper[..., None, j, j + 1 :]
        found[..., j] = q.to(found.dtype)

    def error_of(codes: Tensor) -> Tensor:
        z = centre if zero is None else centre[..., None]
        numbers = (codes.unflatten(-1, (scale.shape[-1], -1)) - z) * scale.float()[..., None]
        return output_error(numbers.flatten(-2) - matrix, moment)

    return torch.where((error_of(found) < error_of(plain))[..., None], found, plain)
