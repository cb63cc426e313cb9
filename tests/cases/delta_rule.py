from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.delta_rule import delta_rule


def inputs(batch: int, length: int, dtype: torch.dtype, gated: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    q, k = (torch.nn.functional.normalize(randn(batch, length, 2, 16), dim=-1) for _ in range(2))
    made = {"q": q, "k": k, "v": randn(batch, length, 2, 6), "beta": torch.rand(batch, length, 2, generator=generator)}
    if gated:
        made["log_decay"] = -torch.rand(batch, length, 2, generator=generator)
    return {name: t.to(dtype) for name, t in made.items()} | {"initial_state": randn(batch, 2, 16, 6)}


CASES = [
    Case(
        "delta_rule",
        name,
        partial(delta_rule, chunk_size=16),
        partial(inputs, gated=gated),
        resumable=True,
        over_time=("q", "k", "v", "beta", "log_decay") if gated else ("q", "k", "v", "beta"),
    )
    for name, gated in (("delta_rule", False), ("gated_delta_rule", True))
]
