from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.slstm import slstm


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Forget gates well below 1, as sums of everything round the more the longer they are; a normaliser is positive."""
    generator = torch.Generator().manual_seed(length)
    rand, randn = (partial(draw, generator=generator) for draw in (torch.rand, torch.randn))
    state = randn(batch, 4, 2, 5)
    state[:, 2] = 0.5 + rand(batch, 2, 5)
    return {
        "x": randn(batch, length, 4, 2, 5).to(dtype),
        "R": (0.3 * randn(2, 5, 4, 5)).to(dtype),
        "initial_state": state,
    }


CASES = [Case("slstm", "slstm", slstm, inputs, resumable=True, over_time=("x",))]
