from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.selective_scan import selective_scan


def inputs(batch: int, length: int, dtype: torch.dtype, groups: int = 2) -> dict[str, torch.Tensor]:
    """No rate near 0: such a state adds up the roundings of all steps, and the largest error is a matter of luck."""
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    return {
        "x": randn(batch, length, 6).to(dtype),
        "dt": (0.5 * torch.rand(batch, length, 6, generator=generator)).to(dtype),
        "A": -0.2 - torch.rand(6, 3, generator=generator) * 4,
        "B": randn(batch, length, groups, 3).to(dtype),
        "C": randn(batch, length, groups, 3).to(dtype),
        "initial_state": randn(batch, 6, 3),
    }


def packed_inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length + 1)
    return inputs(batch, length, dtype, groups=1) | {
        "D": torch.randn(6, generator=generator),
        "z": torch.randn(batch, length, 6, generator=generator).to(dtype),
        "dt_bias": torch.randn(6, generator=generator) - 1,
        "seq_idx": (torch.arange(length) // 7).repeat(batch, 1),
    }


CASES = [
    Case("selective_scan", "selective_scan", selective_scan, inputs, resumable=True, over_time=("x", "dt", "B", "C")),
    Case(
        "selective_scan",
        "selective_scan packed, with every option",
        partial(selective_scan, dt_softplus=True),
        packed_inputs,
        resumable=True,
        over_time=("x", "dt", "B", "C", "z", "seq_idx"),
    ),
]
