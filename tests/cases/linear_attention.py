from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.linear_attention import linear_attention


def inputs(batch: int, length: int, dtype: torch.dtype, channels: int | None = None) -> dict[str, torch.Tensor]:
    """``channels`` of the log decay: None for no decay, 0 for one a head, else one a key channel."""
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    made = {name: randn(batch, length, 2, size).to(dtype) for name, size in (("q", 5), ("k", 5), ("v", 6))}
    if channels is not None:
        shape = (batch, length, 2, channels) if channels else (batch, length, 2)
        made["log_decay"] = -torch.rand(shape, generator=generator).to(dtype)
    return made | {"initial_state": randn(batch, 2, 5, 6)}


CASES = [
    Case(
        "linear_attention",
        f"linear_attention_{name}",
        partial(linear_attention, chunk_size=16),
        partial(inputs, channels=channels),
        resumable=True,
        over_time=("q", "k", "v") if channels is None else ("q", "k", "v", "log_decay"),
    )
    for name, channels in (("plain", None), ("scalar_decay", 0), ("vector_decay", 5))
]
