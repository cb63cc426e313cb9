"""Codes that are places in a table of numbers, one for each group of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.kernels.lowbit_matmul import pack, row_bytes, unpack
from zoo.layers.quant.layouts.layout import SCALES, Layout, Sizes, Tensors, in_groups

if TYPE_CHECKING:
    from zoo.layers.quant.format import Format

ROUNDS = 10


class Table(Layout):
    r""":math:`w = t_g[q]`, with :math:`2^b` numbers t of each group, a whole row unless said otherwise.

    They are means of the weights that have them (k-means from evenly spaced numbers on).

    Paper: Zhang et al., "Sketch to Adapt: Fine-Tunable Sketches for Efficient LLM Adaptation", arXiv 2410.06364.
    """

    has_zero = False
    options = ()
    group = None

    def tensors(self, form: Format, rows: int, columns: int) -> Sizes:
        """codes (N, bytes) and table (N, G, 2^bits)."""
        return {
            "codes": ((rows, row_bytes(columns, form.bits)), torch.uint8),
            "table": ((rows, form.groups(columns), 2**form.bits), SCALES[form.scale_dtype]),
        }

    def encode(self, matrix: Tensor, form: Format) -> dict[str, Tensor | None]:
        """The tables of the least squared error that were found, and the nearest of their numbers."""
        q, table = sketch(matrix, form)
        return {"codes": pack(q, form.bits), "table": table}

    def dequantise(self, tensors: Tensors, form: Format, columns: int) -> Tensor:
        """Its definition."""
        table = tensors["table"].float()
        place = unpack(tensors["codes"], form.bits, columns).unflatten(-1, (table.shape[-2], -1))
        return table.gather(-1, place.long()).flatten(-2)


def sketch(matrix: Tensor, form: Format, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes (..., N, C) and tables (..., N, G, 2^bits), as they are stored, of matrices (..., N, C).

    Args:
        matrix: see above.
        form: bits, groups and the dtype of the tables.
        weight: (C,) or (..., 1, C), of the squared error of each column; None for 1.

    In each group the tables of the least weighted error of all rounds are kept, the first of which is evenly spaced.
    """
    groups, dtype = in_groups(matrix, form), SCALES[form.scale_dtype]  # (..., N, G, S)
    importance = torch.ones_like(groups) if weight is None else in_groups(weight.expand_as(matrix), form)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    table = low + (high - low) * torch.linspace(0, 1, 2**form.bits, device=matrix.device)
    best: Any = None
    for _ in range(ROUNDS + 1):
        held = table.to(dtype).float().sort(-1).values
        place = torch.searchsorted(((held[..., 1:] + held[..., :-1]) / 2).contiguous(), groups.contiguous())
        error = (importance * (held.gather(-1, place) - groups).square()).sum(-1, keepdim=True)
        better = torch.ones_like(error, dtype=torch.bool) if best is None else error < best[2]
        found = place, held, error
        best = found if best is None else [torch.where(better, n, b) for n, b in zip(found, best, strict=True)]
        total = torch.zeros_like(held).scatter_add(-1, place, importance)
        sums = torch.zeros_like(held).scatter_add(-1, place, importance * groups)
        table = torch.where(total > 0, sums / total.clamp(min=torch.finfo(total.dtype).tiny), held)
    return best[0].flatten(-2).to(torch.uint8), best[1].to(dtype)
