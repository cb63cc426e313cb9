from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.delta_rule import delta_rule


def inputs(batch: int, length: int, dtype: torch.dtype, gate: tuple[int, ...] | None = None) -> dict[str, torch.Tensor]:
    """``gate``: the shape of a step's log decays, None for no decay."""
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    q, k = (torch.nn.functional.normalize(randn(batch, length, 2, 16), dim=-1) for _ in range(2))
    made = {"q": q, "k": k, "v": randn(batch, length, 2, 6), "beta": torch.rand(batch, length, 2, generator=generator)}
    if gate is not None:
        made["log_decay"] = -torch.rand(batch, length, *gate, generator=generator)
    return {name: t.to(dtype) for name, t in made.items()} | {"initial_state": randn(batch, 2, 16, 6)}


CASES = [
    Case(
        "delta_rule",
        name,
        partial(delta_rule, chunk_size=16),
        partial(inputs, gate=gate),
        resumable=True,
        over_time=("q", "k", "v", "beta", "log_decay") if gate else ("q", "k", "v", "beta"),
    )
    for name, gate in (("delta_rule", None), ("gated_delta_rule", (2,)), ("channel_gated_delta_rule", (2, 16)))
]
