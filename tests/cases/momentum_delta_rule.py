from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.momentum_delta_rule import momentum_delta_rule


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn, rand = (partial(draw, generator=generator) for draw in (torch.randn, torch.rand))
    q, k = (torch.nn.functional.normalize(randn(batch, length, 2, 12), dim=-1) for _ in range(2))
    rate, decay, momentum = (rand(batch, length, 2) for _ in range(3))
    made = {
        "q": q, "k": k, "v": randn(batch, length, 2, 6), "rate": rate, "log_decay": -0.2 * decay,
        "log_momentum": momentum.clamp(min=0.05).log(),
    }  # fmt: skip
    states = {name: randn(batch, 2, 12, 6) for name in ("initial_state", "initial_momentum")}
    return {name: t.to(dtype) for name, t in made.items()} | states


CASES = [
    Case(
        "momentum_delta_rule",
        "momentum_delta_rule",
        partial(momentum_delta_rule, chunk_size=16),
        inputs,
        over_time=("q", "k", "v", "rate", "log_decay", "log_momentum"),
    )
]
