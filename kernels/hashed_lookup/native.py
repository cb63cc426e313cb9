"""The lookup on the CPU in C (``hashed_lookup.c``): a slice of one table after another, for many tokens at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels import native

SOURCE = Path(__file__).with_name("hashed_lookup.c")


def forward(x: Tensor, tables: Tensor, temperature: float, scaled: bool) -> Tensor:
    """Same arguments and results as the reference, contiguous and of one dtype."""
    codes, weights, inverse = _chosen(x, temperature)
    y = x.new_empty(len(x), tables.shape[2])
    native.call(SOURCE, "hashed_lookup_forward", *_sizes(x, tables, scaled), inverse, x, tables, codes, weights, y)
    return y


def backward(dy: Tensor, x: Tensor, tables: Tensor, temperature: float, scaled: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and the tables."""
    codes, weights, inverse = _chosen(x, temperature)
    dx, dtables = torch.empty_like(x), torch.zeros_like(tables)
    native.call(
        SOURCE, "hashed_lookup_backward", *_sizes(x, tables, scaled), inverse, dy.contiguous(), x, tables,
        codes, weights, dx, dtables,
    )  # fmt: skip
    return dx, dtables


def obstacle(device: torch.device) -> str | None:
    """Why this implementation cannot run on ``device``, or None."""
    return native.obstacle(SOURCE, device)


def _sizes(x: Tensor, tables: Tensor, scaled: bool) -> tuple[int, ...]:
    return (*x.shape, tables.shape[2], torch.get_num_threads(), int(scaled))


def _chosen(x: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the codes and weights (K, M), and 1 / temperature."""
    shape = x.shape[1], x.shape[0]
    return x.new_empty(shape, dtype=torch.int32), x.new_empty(shape), _constant(1 / temperature, x.dtype)


@cache
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(value, dtype=dtype, device="cpu")
