from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.generalized_delta_rule import generalized_delta_rule


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """As RWKV-7 makes them: a = -k, b = k eta of a key with norm 1 and eta in (0, 1), decays above exp(-0.607)."""
    generator = torch.Generator().manual_seed(length)
    randn, rand = partial(torch.randn, generator=generator), partial(torch.rand, generator=generator)
    shape = batch, length, 2, 6
    a = -torch.nn.functional.normalize(randn(shape), dim=-1)
    made = {"q": randn(shape), "k": randn(shape), "v": randn(batch, length, 2, 5), "a": a, "b": -a * rand(shape)}
    made["log_decay"] = -0.607 * rand(shape)
    return {name: t.to(dtype) for name, t in made.items()} | {"initial_state": randn(batch, 2, 6, 5)}


CASES = [
    Case(
        "generalized_delta_rule",
        "generalized_delta_rule",
        partial(generalized_delta_rule, chunk_size=16),
        inputs,
        resumable=True,
        over_time=("q", "k", "v", "a", "b", "log_decay"),
    )
]
