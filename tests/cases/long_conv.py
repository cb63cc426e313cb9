from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.long_conv import long_conv


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    return {
        "u": randn(batch, length, 3).to(dtype),
        "kernel": randn(3, length),
        "D": randn(3),
        "gate": randn(batch, length, 3).to(dtype),
    }


def plain_inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: t for name, t in inputs(batch, length, dtype).items() if name in ("u", "kernel")}


CASES = [
    Case("long_conv", "causal", long_conv, inputs, resumable=False, over_time=("u", "gate")),
    Case("long_conv", "ungated", long_conv, plain_inputs, resumable=False, over_time=("u",)),
    Case("long_conv", "circular", partial(long_conv, circular=True), inputs, resumable=False, over_time=("u", "gate")),
]


def both_ways(u: torch.Tensor, past: torch.Tensor, future: torch.Tensor, D: torch.Tensor) -> torch.Tensor:
    """y (B, T, D), one product at a time: tap j of the past is j steps back, of the future j + 1 steps ahead."""
    y, length = D * u, u.shape[1]
    for t in range(length):
        for s in range(length):
            taps, distance = (past, t - s) if s <= t else (future, s - t - 1)
            if distance < past.shape[1]:
                y[:, t] += taps[:, distance] * u[:, s]
    return y
