from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.leaky_memory import leaky_memory


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Memories of 5 units, which neither grow nor run away from one another as roundings differ, and 9 hidden units."""
    generator = torch.Generator().manual_seed(length)
    rand, randn = (partial(draw, generator=generator) for draw in (torch.rand, torch.randn))
    return {
        "x": randn(batch, length, 9).to(dtype),
        "W_in": (0.3 * randn(5, 9)).to(dtype),
        "W_out": (0.3 * randn(9, 5)).to(dtype),
        "bias": (0.3 * randn(5)).to(dtype),
        "decay": (0.2 + 0.5 * rand(5)).to(dtype),
        "gain": (0.5 * rand(5)).to(dtype),
        "initial_state": randn(batch, 5),
    }


CASES = [
    Case("leaky_memory", "leaky_memory", partial(leaky_memory, activation="silu"), inputs, True, ("x",)),
    Case("leaky_memory", "leaky_memory-relu", leaky_memory, inputs, resumable=True, over_time=("x",)),
]
