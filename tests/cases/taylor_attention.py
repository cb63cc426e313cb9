from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.taylor_attention import taylor_attention, taylor_features

SEQUENCES = torch.tensor([0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1])


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    state = 0.1 * randn(batch, 2, 21, 8)
    state[..., -1] += 20 * taylor_features(torch.zeros(5))  # the sum of phi(k) over 20 small keys
    return {
        "q": randn(batch, length, 2, 5).to(dtype),
        "k": randn(batch, length, 2, 5).to(dtype),
        "v": randn(batch, length, 2, 7).to(dtype),
        "initial_state": state,
    }


def packed(q: torch.Tensor, **options):
    """Sequences of 7, 10, 1, 7, 10, 1, ... steps."""
    repeats = -(-q.shape[1] // len(SEQUENCES))
    seq_idx = SEQUENCES.to(q.device).repeat(repeats)[: q.shape[1]].expand(q.shape[0], -1)
    return taylor_attention(q, seq_idx=seq_idx, chunk_size=16, **options)


OVER_TIME = ("q", "k", "v")
CASES = [
    Case(
        "taylor_attention",
        "taylor_attention",
        partial(taylor_attention, chunk_size=16),
        inputs,
        resumable=True,
        over_time=OVER_TIME,
    ),
    Case(
        "taylor_attention",
        "taylor_attention-numerator",
        partial(taylor_attention, normalize=False, chunk_size=16),
        inputs,
        resumable=True,
        over_time=OVER_TIME,
    ),
    Case("taylor_attention", "taylor_attention-packed", packed, inputs, over_time=OVER_TIME),
]
