from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.rms_norm import rms_norm


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    return {
        "x": randn(batch, length, 12).to(dtype),
        "weight": randn(12).to(dtype),
        "z": randn(batch, length, 12).to(dtype),
    }


def ungated(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    found = inputs(batch, length, dtype)
    return {"x": found["x"], "weight": found["weight"]}


CASES = [
    Case("rms_norm", "rms_norm", rms_norm, ungated, over_time=("x",)),
    Case("rms_norm", "rms_norm_gated", partial(rms_norm, num_groups=2), inputs, over_time=("x", "z")),
    Case("rms_norm", "rms_norm_before_gate", partial(rms_norm, norm_before_gate=True), inputs, over_time=("x", "z")),
]
