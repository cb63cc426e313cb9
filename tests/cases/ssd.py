from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels import ssd


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    return {
        "x": randn(batch, length, 4, 6).to(dtype),
        "dt": (0.5 * torch.rand(batch, length, 4, generator=generator)).to(dtype),
        "A": -torch.rand(4, generator=generator) * 16,
        "B": randn(batch, length, 2, 5).to(dtype),
        "C": randn(batch, length, 2, 5).to(dtype),
        "D": randn(4),
        "initial_state": randn(batch, 4, 6, 5),
    }


CASES = [
    Case("ssd", "ssd", partial(ssd, chunk_size=16), inputs, resumable=True, over_time=("x", "dt", "B", "C")),
]
