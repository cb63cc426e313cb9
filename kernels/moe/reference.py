"""The grouped matrix product by its definition: every row times every expert, of which it keeps its own."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """x (M, D) sorted by expert, weight (E, D, F), offsets (E + 1,) -> (M, F), differentiable by autograd."""
    bounds = checked_bounds(offsets, x.shape[0])
    row = torch.arange(x.shape[0], device=x.device)[:, None]
    output = x.new_zeros(x.shape[0], weight.shape[2])
    for expert, (start, end) in zip(weight, bounds, strict=True):
        output = torch.where((row >= start) & (row < end), x @ expert, output)
    return output


def checked_bounds(offsets: Tensor, rows: int) -> list[tuple[int, int]]:
    """First row and end of each expert's rows, on the host.

    Raises:
        ValueError: unless the offsets begin at 0, never fall, and end within the rows.
    """
    values = offsets.tolist()
    if values[0] != 0 or values[-1] > rows or sorted(values) != values:
        raise ValueError(f"grouped_matmul: offsets must rise from 0 to at most the number of rows {rows}, got {values}")
    return list(pairwise(values))
