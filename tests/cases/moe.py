from __future__ import annotations

import torch

from cases import Case
from zoo.kernels.moe import grouped_matmul


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Four experts: the first has no rows, and the last rows have no expert."""
    rows = batch * length
    generator = torch.Generator().manual_seed(rows)
    return {
        "x": torch.randn(rows, 19, generator=generator).to(dtype),
        "weight": torch.randn(4, 19, 35, generator=generator).to(dtype),
        "offsets": torch.tensor([0, 0, rows // 3, rows // 3 + 1, max(rows // 3 + 1, rows - 2)]),
    }


def inputs_with_bias(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return inputs(batch, length, dtype) | {"bias": torch.randn(4, 35, generator=torch.Generator().manual_seed(0))}


CASES = [
    Case("grouped_matmul", "grouped_matmul", grouped_matmul, inputs),
    Case("grouped_matmul", "grouped_matmul_bias", grouped_matmul, inputs_with_bias),
]
