"""Collectives with gradients: what goes forwards one way comes back the other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup


def copied(x: Tensor, group: Group, scale: float = 1.0) -> Tensor:
    """x, which all processes hold alike and use for different parts of the work: its gradients are added up."""
    return _Both.apply(
        x, lambda x: x.view_as(x), lambda d: _summed(d, group) * scale if scale != 1 else _summed(d, group)
    )


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum over the processes of what each has found, of which all make the same."""
    return _Both.apply(x, lambda x: _summed(x, group), lambda d: d)


def gathered(x: Tensor, group: Group, dim: int) -> Tensor:
    """The parts of all processes side by side, used for different parts of the work."""
    return _Both.apply(x, lambda x: _gathered(x, group, dim), lambda d: _scattered(d, group, dim))


def joined(x: Tensor, group: Group, dim: int) -> Tensor:
    """The parts of all processes side by side, of which all make the same."""
    return _Both.apply(x, lambda x: _gathered(x, group, dim), lambda d: own_part(d, group, dim))


def parted(x: Tensor, group: Group, dim: int) -> Tensor:
    """The process's own part of what all hold alike: ``joined`` backwards."""
    return _Both.apply(x, lambda x: own_part(x, group, dim), lambda d: _gathered(d, group, dim))


def exchanged(x: Tensor, group: Group, sends: Sequence[int], receives: Sequence[int]) -> Tensor:
    """Rows x: the first ``sends[0]`` go to process 0, and so on; returned are those that come, by sender."""
    return _Both.apply(
        x, lambda x: all_to_all(x, group, sends, receives), lambda d: all_to_all(d, group, receives, sends)
    )


def scaled_back(x: Tensor, scale: float) -> Tensor:
    """x, whose gradient is multiplied."""
    return x if scale == 1 else _Both.apply(x, lambda x: x.view_as(x), lambda d: d * scale)


class _Both(torch.autograd.Function):
    """A linear map and its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(gradients[0]), None, None


def own_part(x: Tensor, group: Group, dim: int) -> Tensor:
    """The process's part of equal ones along ``dim``."""
    return x.chunk(group.size(), dim)[group.rank()].contiguous()


def all_to_all(x: Tensor, group: Group, sends: Sequence[int], receives: Sequence[int]) -> Tensor:
    """See ``exchanged``."""
    received = x.new_empty(sum(receives), *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), list(receives), list(sends), group=group)
    return received


def _summed(x: Tensor, group: Group) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _gathered(x: Tensor, group: Group, dim: int) -> Tensor:
    x = x.movedim(dim, 0).contiguous()
    whole = x.new_empty(group.size() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(whole, x, group=group)
    return whole.movedim(0, dim).contiguous()


def _scattered(x: Tensor, group: Group, dim: int) -> Tensor:
    x = x.movedim(dim, 0).contiguous()
    part = x.new_empty(len(x) // group.size(), *x.shape[1:])
    dist.reduce_scatter_tensor(part, x, group=group)
    return part.movedim(0, dim).contiguous()
