from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.hashed_lookup import hashed_lookup


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    return {"x": randn(batch, length, 9).to(dtype), "tables": randn(3, 8, 70).to(dtype)}


CASES = [
    Case("hashed_lookup", "hashed_lookup", hashed_lookup, inputs, over_time=("x",)),
    Case(
        "hashed_lookup",
        "hashed_lookup_scaled",
        partial(hashed_lookup, temperature=0.7, scaled=True),
        inputs,
        over_time=("x",),
    ),
]
