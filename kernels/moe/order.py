"""Rows in the order of their experts, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.dispatch import check_shape


class TokenOrder(NamedTuple):
    """Assignments (token m, choice j), numbered n = m k + j, sorted by expert, in token order within an expert.

    ``order`` (M k,) is the number of each sorted row, ``inverse`` the row of each number; the rows of expert e lie at
    ``offsets[e]:offsets[e + 1]`` and those of no expert behind ``offsets[E]``. ``dropped`` () counts what exceeded
    the capacity.
    """

    order: Tensor
    inverse: Tensor
    offsets: Tensor
    dropped: Tensor


def sort_by_expert(experts: Tensor, num_experts: int, *, capacity: int | None = None) -> TokenOrder:
    """Sort assignments by expert, on the device, without waiting for it.

    Args:
        experts: (M, k) int64 in [0, num_experts]; ``num_experts`` itself stands for no expert.
        capacity: largest number of assignments an expert takes, the first in token order (Switch Transformers, arXiv
            2101.03961, section 2.2); the others go to no expert. None: no limit (dropless).

    Raises:
        ValueError: for experts that are not (M, k) int64, or a capacity below 1.
    """
    check_shape("sort_by_expert", "experts", experts, "(M, k)", None, None)
    if experts.dtype != torch.int64:
        raise ValueError(f"sort_by_expert: experts must be int64, got {experts.dtype}")
    if capacity is not None and capacity < 1:
        raise ValueError(f"sort_by_expert: capacity must be at least 1, got {capacity}")
    number = torch.arange(experts.numel(), device=experts.device)
    bounds = torch.arange(num_experts + 1, device=experts.device)
    expert, order = experts.flatten().sort(stable=True)
    offsets = torch.searchsorted(expert, bounds)
    dropped = offsets.new_zeros(())
    if capacity is not None:
        over = (number - offsets[expert] >= capacity) & (expert < num_experts)
        dropped = over.sum()
        expert, again = expert.masked_fill(over, num_experts).sort(stable=True)
        order, offsets = order[again], torch.searchsorted(expert, bounds)
    inverse = torch.empty_like(order).scatter(0, order, number)
    return TokenOrder(order, inverse, offsets, dropped)


def gather(x: Tensor, index: Tensor, inverse: Tensor, copies: int) -> Tensor:
    """x[index // copies] where ``index`` is a permutation: the gradient gathers by the inverse, it does not scatter."""
    return _Gather.apply(x, index, inverse, copies)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor, copies: int) -> Tensor:
        return x.index_select(0, index // copies)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, inverse, ctx.copies = inputs
        ctx.save_for_backward(inverse)

    @staticmethod
    def backward(ctx, dy):
        (inverse,) = ctx.saved_tensors
        dx = dy.index_select(0, inverse)
        if ctx.copies > 1:
            dx = dx.unflatten(0, (dx.shape[0] // ctx.copies, ctx.copies)).sum(1)
        return dx, None, None, None
