"""The lookup as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.hashed_lookup.codes import codes, weights


def forward(x: Tensor, tables: Tensor, temperature: float, scaled: bool) -> Tensor:
    """x (M, K, bits) and tables (K, 2^bits, D) of the compute dtype -> (M, D)."""
    rows = tables[torch.arange(len(tables), device=x.device), codes(x)]  # (M, K, D)
    return (weights(x, temperature, scaled)[..., None] * rows).sum(1)
