from __future__ import annotations

import torch

from cases import Case
from zoo.kernels.linear_recurrence import linear_recurrence


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """No decay near 1: such a state adds up the roundings of all steps, and the largest error is a matter of luck."""
    generator = torch.Generator().manual_seed(length)
    return {
        "x": torch.randn(batch, length, 5, generator=generator).to(dtype),
        "log_decay": (-0.1 - torch.rand(batch, length, 5, generator=generator)).to(dtype),
        "initial_state": torch.randn(batch, 5, generator=generator),
    }


CASES = [
    Case(
        "linear_recurrence",
        "linear_recurrence",
        linear_recurrence,
        inputs,
        resumable=True,
        over_time=("x", "log_decay"),
    )
]
