"""Pairs against all other pairs, in blocks: a contrastive loss whose logits never lie in memory together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def contrastive_loss(
    first: Tensor,
    second: Tensor,
    scale: Tensor,
    *,
    rows: int | None = None,
    group: Any = None,
) -> Tensor:
    r"""InfoNCE both ways, of N pairs of features.

    .. math::
        L = -\frac{1}{2 N} \sum_i \log \frac{e^{s x_i \cdot y_i}}{\sum_j e^{s x_i \cdot y_j}}
            + \log \frac{e^{s x_i \cdot y_i}}{\sum_j e^{s x_j \cdot y_i}}

    The logits of ``rows`` pairs at a time are made, and made again in the backward pass: the same loss and gradients
    with rows N numbers in memory in place of N^2. In several processes the sums over j are over the pairs of a group of
    them, and i over the process's own: the mean of all processes' losses, and of their gradients as DDP takes it, are
    those of one process that has a group's pairs, averaged over the groups.

    Args:
        first: x (N, D), of length 1.
        second: y (N, D), of length 1.
        scale: s, a scalar.
        rows: pairs at a time; all where None.
        group: processes that share their pairs, of `torch.distributed`; None for this one alone.

    Paper: Guo et al., "M2-Encoder: Advancing Bilingual Image-Text Understanding by Large-scale Efficient Pretraining",
    arXiv 2401.15896 (groups of processes; the blocks are ours).
    """
    offset = 0 if group is None else len(first) * dist.get_rank(group)
    keys = (second, first) if group is None else (gathered(second, group), gathered(first, group))
    ways = [one_way(x, y, scale, offset, rows) for x, y in zip((first, second), keys, strict=True)]
    return (ways[0] + ways[1]) / 2


def one_way(x: Tensor, keys: Tensor, scale: Tensor, offset: int = 0, rows: int | None = None) -> Tensor:
    """The mean cross-entropy of x (N, D) against keys (M, D), where that of row i is key ``offset`` + i."""

    def block(start: int, part: Tensor) -> Tensor:
        labels = torch.arange(offset + start, offset + start + len(part), device=x.device)
        return F.cross_entropy(scale * part @ keys.mT, labels, reduction="sum")

    size = rows or len(x)
    if size >= len(x):
        return block(0, x) / len(x)
    parts = [_again(block, start, x[start : start + size]) for start in range(0, len(x), size)]
    return torch.stack(parts).sum() / len(x)


def in_parts(encode: Callable[[Tensor], Tensor], inputs: Tensor, size: int | None) -> Tensor:
    """``encode(inputs)``, of ``size`` inputs at a time, whose activations are made again in the backward pass: memory
    of one part in place of the whole batch, for any loss of all outputs. The inputs must not see each other, as they do
    in batch norms."""
    if size is None or size >= len(inputs):
        return encode(inputs)
    return torch.cat([_again(encode, part) for part in inputs.split(size)])


def gathered(x: Tensor, group: Any) -> Tensor:
    """x (N, D) of all processes of a group, (processes N, D), through which gradients flow."""
    return _Gathered.apply(x, group)  # type: ignore[return-value]


def _again(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return checkpoint(function, *inputs, use_reentrant=False)  # type: ignore[return-value]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:  # type: ignore[override]
        ctx.group, ctx.size = group, len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        whole = gradients[0].contiguous()
        dist.all_reduce(whole, group=ctx.group)
        return whole[ctx.size * dist.get_rank(ctx.group) :][: ctx.size], None
