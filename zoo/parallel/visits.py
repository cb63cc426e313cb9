"""Attention over a shared sequence in which keys or queries visit the processes that have what they see, and no other.

With a window, or with several sequences side by side, most pieces do not see each other: what nobody sees is neither
sent nor computed. Each process sends straight to those s places on, s = 1, 2, ..., while it computes with what came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.parallel.collectives import Group
from zoo.parallel.exchange import Exchange
from zoo.parallel.pieces import Merged, attended, gradients, half
from zoo.parallel.sights import Halves, Sight

Found = tuple[Tensor, ...]


def visiting_keys(q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group, sight: Sight) -> Tensor:
    """Queries (B, H, T, d) stay, halves of keys and values (B, G, T, d) go to the processes whose queries see any:
    2 G (T / 2) d numbers each and row, a message a process; backwards once more, and their gradients straight back.

    Papers: Liu et al., "Ring Attention", arXiv 2310.01889; what is skipped: Beltagy et al., "Longformer", arXiv
    2004.05150, and Krell et al., "Efficient Sequence Packing without Cross-contamination", arXiv 2107.02027.
    """
    return _Keys.apply(q, k, v, scale, group, sight)  # type: ignore[return-value]


def visiting_queries(q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group, sight: Sight) -> Tensor:
    """Keys and values stay, halves of queries go to the processes whose keys they see, and what they found straight
    back: H (T / 2) d numbers each and row one way, H (T / 2) (d + 1) the other.

    Paper: Wang et al., "TokenRing", arXiv 2412.20501; what is skipped: see ``visiting_keys``.
    """
    return _Queries.apply(q, k, v, scale, group, sight)  # type: ignore[return-value]


class _Keys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group, sight: Sight) -> Tensor:
        rank, found = group.rank(), Merged(q)

        def compute(guest: int, halves: Halves, moving: Sequence[Tensor]) -> Found:
            for a, b in sight.pairs(rank, guest):
                block = sight.block(rank, guest, a, b)
                key, value = _picked(moving[0], halves, b).chunk(2)
                found.add(a, *attended(half(a, q), key, value, scale, block=block))
            return ()

        visit(group, (torch.cat([k, v]),), lambda guest, host: sight.keys(host, guest), compute)
        output = found.output.to(q.dtype)
        ctx.save_for_backward(q, k, v, output, found.lse)
        ctx.scale, ctx.group, ctx.sight = scale, group, sight
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse = ctx.saved_tensors
        rank, sight, wide = ctx.group.rank(), ctx.sight, lse.dtype
        delta, dq = (dy * output).to(wide).sum(-1), torch.zeros_like(q, dtype=wide)
        both = torch.cat([k, v])
        total = torch.zeros_like(both, dtype=wide)

        def compute(guest: int, halves: Halves, moving: Sequence[Tensor]) -> Found:
            part = torch.zeros_like(moving[0], dtype=wide)
            for a, b in sight.pairs(rank, guest):
                own = [half(a, t) for t in (q, dy, lse, delta)]
                block, keys = sight.block(rank, guest, a, b), _picked(moving[0], halves, b).chunk(2)
                first, *rest = gradients(*own, *keys, ctx.scale, block=block)  # type: ignore[misc]
                half(a, dq).add_(first)
                _picked(part, halves, b).add_(torch.cat(rest))
            return (part,)

        def take(halves: Halves, part: Tensor) -> None:
            for b in halves:
                half(b, total).add_(_picked(part, halves, b))

        visit(ctx.group, (both,), lambda guest, host: sight.keys(host, guest), compute, take, (total,))
        return dq.to(q.dtype), *(one.to(k.dtype) for one in total.chunk(2)), None, None, None


class _Queries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group, sight: Sight) -> Tensor:
        rank, found = group.rank(), Merged(q)

        def compute(guest: int, halves: Halves, moving: Sequence[Tensor]) -> Found:
            merged = Merged(moving[0])
            for a, b in sight.pairs(guest, rank):
                block, queries = sight.block(guest, rank, a, b), _picked(moving[0], halves, a)
                place = None if len(halves) == 1 else a
                merged.add(place, *attended(queries, half(b, k), half(b, v), scale, block=block))
            return merged.output.to(q.dtype), merged.lse

        def take(halves: Halves, output: Tensor, lse: Tensor) -> None:
            found.add(None if len(halves) == 2 else halves[0], output, lse)

        visit(group, (q,), sight.queries, compute, take, (q, found.lse))
        output = found.output.to(q.dtype)
        ctx.save_for_backward(q, k, v, output, found.lse)
        ctx.scale, ctx.group, ctx.sight = scale, group, sight
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse = ctx.saved_tensors
        rank, sight, wide = ctx.group.rank(), ctx.sight, lse.dtype
        delta, dq = (dy * output).to(wide).sum(-1), torch.zeros_like(q, dtype=wide)
        dk, dv = (torch.zeros_like(t, dtype=wide) for t in (k, v))

        def compute(guest: int, halves: Halves, moving: Sequence[Tensor]) -> Found:
            part = torch.zeros_like(moving[0], dtype=wide)
            for a, b in sight.pairs(guest, rank):
                own = [_picked(t, halves, a) for t in moving]
                block = sight.block(guest, rank, a, b)
                first, *rest = gradients(*own, half(b, k), half(b, v), ctx.scale, block=block)  # type: ignore[misc]
                _picked(part, halves, a).add_(first)
                for total, other in zip((dk, dv), rest, strict=True):
                    half(b, total).add_(other)
            return (part,)

        def take(halves: Halves, part: Tensor) -> None:
            half(None if len(halves) == 2 else halves[0], dq).add_(part)

        visit(ctx.group, (q, dy, lse, delta), sight.queries, compute, take, (dq,))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def visit(
    group: Group,
    own: Sequence[Tensor],
    which: Callable[[int, int], Halves],
    compute: Callable[[int, Halves, Sequence[Tensor]], Found],
    take: Callable[..., None] | None = None,
    like: Sequence[Tensor] = (),
) -> None:
    """Tensors (B, H, T, ...) of each process go to those that want some half of them, the next one first.

    Args:
        own: of this process.
        which: (guest, host) to the halves that go there, none where there is nothing to see.
        compute: (guest, which halves came, their tensors) to what goes home.
        take: (which halves, what came home) at the guest's; None where nothing does.
        like: tensors of all of the own tokens, for shape and dtype of what comes home.
    """
    rank, size = group.rank(), group.size()
    halves, moving, found = which(rank, rank), list(own), Found()
    for step in range(size + 1):
        coming = Exchange(group)
        to, next_guest, host, last_guest = (
            one % size for one in (rank + step + 1, rank - step - 1, rank + step - 1, rank - step + 1)
        )
        arriving = which(next_guest, rank) if step + 1 < size else ()
        returning = which(rank, host) if step > 1 and take is not None else ()
        for tensor in own if step + 1 < size and which(rank, to) else ():
            coming.send(to, _some(tensor, which(rank, to)))
        for tensor in own if arriving else ():
            coming.receive(next_guest, _some(tensor, arriving))
        for tensor in found if step > 1 else ():
            coming.send(last_guest, tensor)
        for tensor in like if returning else ():
            coming.receive(host, _some(tensor, returning))
        coming.start()
        found = compute((rank - step) % size, halves, moving) if step < size and halves else Found()
        if step == 0 and take is not None:
            take(halves, *found)
        came = coming.done()
        if returning:
            take(returning, *came[len(own) if arriving else 0 :])  # type: ignore[misc]
        halves, moving = arriving, came[: len(own)] if arriving else []


def _some(x: Tensor, halves: Halves) -> Tensor:
    """Some halves of the tokens of x (B, H, T, ...)."""
    return x if len(halves) == 2 else half(halves[0], x)


def _picked(x: Tensor, halves: Halves, which: int) -> Tensor:
    """One half, of the tensor of some of them."""
    return x if len(halves) == 1 else half(which, x)
