from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.causal_conv1d import causal_conv1d


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    return {
        "x": randn(batch, length, 5).to(dtype),
        "weight": randn(5, 4).to(dtype),
        "initial_state": randn(batch, 3, 5).to(dtype),
    }


def packed_inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return inputs(batch, length, dtype) | {
        "bias": torch.randn(5, generator=torch.Generator().manual_seed(length + 1)).to(dtype),
        "seq_idx": (torch.arange(length) // 7).repeat(batch, 1),
    }


CASES = [
    Case("causal_conv1d", "causal_conv1d", causal_conv1d, inputs, resumable=True, over_time=("x",)),
    Case(
        "causal_conv1d",
        "causal_conv1d packed, with bias and silu",
        partial(causal_conv1d, activation="silu"),
        packed_inputs,
        resumable=True,
        over_time=("x", "seq_idx"),
    ),
]
