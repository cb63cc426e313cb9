"""What scores the tokens for the depths of a recursion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.layers.linear import WideLinear

Gate = Callable[[Tensor], Tensor]


def linear_router(dim: int, outputs: int) -> nn.Module:
    """W x, (..., dim) -> (..., outputs) in float32 or wider; W begins normal with standard deviation 0.02."""
    router = WideLinear(dim, outputs, bias=False)
    nn.init.normal_(router.weight, std=0.02)
    return router


def mlp_router(dim: int, outputs: int) -> nn.Module:
    """V gelu(W x) with 2 dim hidden units, as ``linear_router`` otherwise."""
    return nn.Sequential(linear_router(dim, 2 * dim), nn.GELU(), linear_router(2 * dim, outputs))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of the values where the mask is True; 0 where it is nowhere."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
