from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.deformable_attention_3d import deformable_attention_3d


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Points on both sides of every edge of the volume."""
    generator = torch.Generator().manual_seed(length)
    rand, randn = (partial(draw, generator=generator) for draw in (torch.rand, torch.randn))
    return {
        "value": randn(batch, 2, 3, 2, 5).to(dtype),
        "depth": randn(batch, 2, 3, 6).softmax(-1).to(dtype),
        "locations": (1.5 * rand(batch, length, 2, 2, 3) - 0.25).to(dtype),
        "weights": randn(batch, length, 2, 2).softmax(-1).to(dtype),
    }


CASES = [
    Case(
        "deformable_attention_3d", "deformable_attention_3d", deformable_attention_3d, inputs,
        over_time=("locations", "weights"),
    ),
]  # fmt: skip
