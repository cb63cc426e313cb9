from __future__ import annotations

from functools import partial

import torch

from cases import Case
from zoo.kernels.sliding_window_attention import sliding_window_attention


def inputs(batch: int, length: int, dtype: torch.dtype, cached: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    randn = partial(torch.randn, generator=generator)
    return {
        "q": randn(batch, length, 4, 8).to(dtype),
        "k": randn(batch, length + cached, 2, 8).to(dtype),
        "v": randn(batch, length + cached, 2, 6).to(dtype),
    }


def packed(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return inputs(batch, length, dtype) | {"seq_idx": (torch.arange(length) // 7).expand(batch, -1)}


def case(name: str, make_inputs=inputs, over_time: tuple[str, ...] = ("q", "k", "v"), **options) -> Case:
    call = partial(sliding_window_attention, **options)
    return Case("sliding_window_attention", f"sliding_window_attention-{name}", call, make_inputs, over_time=over_time)


CASES = [
    case("window", window=9),
    case("cache_and_sinks", partial(inputs, cached=11), (), window=5, sinks=3),
    case("packed", packed, ("q", "k", "v", "seq_idx"), window=9),
]
