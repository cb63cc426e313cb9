"""Causal attention over a sequence that several processes share: what stays, what goes round, and which way.

What goes where if some see others yet is in ``visits.py``.

torch's own context parallelism does this for the attention kernels of GPUs alone, so it is written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from zoo.layers import CausalAttention, SlidingWindowAttention
from zoo.layers.attention.keys import Place
from zoo.parallel.collectives import Group
from zoo.parallel.exchange import Exchange
from zoo.parallel.pieces import Merged, attended, gradients, half, seen
from zoo.parallel.sights import Sight
from zoo.parallel.visits import visiting_keys, visiting_queries


class SharedAttention(CausalAttention):
    """Attention of the process's own tokens to those of all processes, of the same sequence and within a window."""

    ring: Ring
    processes: Group
    window: int | None = None

    def place(self, x: Tensor, state: Any, seq_idx: Tensor | None) -> Place:
        """The two pieces of x (B, T, dim); ids (B, P T) are of all tokens, as every process knows them."""
        rank, size, half = self.processes.rank(), self.processes.size(), x.shape[1] // 2
        piece = torch.arange(half, device=x.device)
        return Place(torch.cat([rank * half + piece, (2 * size - 1 - rank) * half + piece]), seq_idx)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, place: Place, state: Any) -> Tensor:
        """Over the keys and values (B, G, T, d) of all processes."""
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        size, length = self.processes.size(), q.shape[2] // 2
        if place.ids is None and (self.window is None or self.window >= 2 * size * length):
            return self.ring.whole(q, k, v, scale, self.processes)
        return self.ring.part(q, k, v, scale, self.processes, Sight(size, length, self.window, place.ids))


class SharedWindowAttention(SharedAttention, SlidingWindowAttention):
    """The same of a layer with a window."""


SHARED = {CausalAttention: SharedAttention, SlidingWindowAttention: SharedWindowAttention}


def share_attention(layer: CausalAttention, mesh: DeviceMesh, ring: Ring) -> None:
    """From now on the layer's tokens are those of one process."""
    layer.__class__ = SHARED[type(layer)]
    layer.ring, layer.processes = ring, mesh.get_group()  # type: ignore[assignment]


def ring_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group) -> Tensor:
    """Queries (B, H, T, d) stay, keys and values (B, G, T, d) go round, and in the backward pass their gradients with
    them: 2 (P - 1) G T d numbers a process and row, and three times as many backwards.

    Paper: Liu et al., "Ring Attention with Blockwise Transformers", arXiv 2310.01889; the pieces: Brandon et al.,
    "Striped Attention", arXiv 2311.09431, and later practice.
    """
    return _Ring.apply(q, k, v, scale, group)  # type: ignore[return-value]


def token_ring_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group) -> Tensor:
    """Keys and values stay, queries go round; what they found goes straight back while they go on.

    At most (P - 1) H T d numbers one way and (P - 1) H T (d + 1) the other, a process and row: of queries that only
    see keys with their second half, that half alone goes on, and comes back. Backwards queries and the gradients of
    outputs go round in the same way, and the gradients of queries straight back.

    Paper: Wang et al., "TokenRing", arXiv 2412.20501; the authors' code has no backward pass for these pieces.
    """
    return _TokenRing.apply(q, k, v, scale, group)  # type: ignore[return-value]


class Ring(NamedTuple):
    """How processes share attention: where all see all that came before, and where some of it."""

    whole: Callable[..., Tensor]
    part: Callable[..., Tensor]


RINGS = {
    "context": Ring(ring_attention, visiting_keys),
    "token_ring": Ring(token_ring_attention, visiting_queries),
}


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group) -> Tensor:
        rank, size = group.rank(), group.size()
        found, moving = Merged(q), torch.stack([k, v])
        for step in range(size):
            coming = Exchange(group)
            if step + 1 < size:
                coming.send(rank + 1, moving)
                coming.receive(rank - 1, moving)
            coming.start()
            queries, keys = seen(rank, (rank - step) % size)
            others = [half(queries, q), *(half(keys, t) for t in moving)]
            found.add(queries, *attended(*others, scale, causal=step == 0))  # type: ignore[misc]
            if step + 1 < size:
                (moving,) = coming.done()
        output = found.output.to(q.dtype)
        ctx.save_for_backward(q, k, v, output, found.lse)
        ctx.scale, ctx.group = scale, group
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse = ctx.saved_tensors
        rank, size, wide = ctx.group.rank(), ctx.group.size(), lse.dtype
        delta, dq = (dy * output).to(wide).sum(-1), torch.zeros_like(q, dtype=wide)
        moving, gradient = torch.stack([k, v]), torch.zeros(2, *k.shape, dtype=wide, device=k.device)
        for step in range(size):
            queries, keys = seen(rank, (rank - step) % size)
            own = [half(queries, t) for t in (q, dy, lse, delta)]
            own += [half(keys, t) for t in moving]
            parts = gradients(*own, ctx.scale, causal=step == 0)  # type: ignore[misc]
            for total, part in zip((half(queries, dq), *(half(keys, t) for t in gradient)), parts, strict=True):
                total.add_(part)
            coming = Exchange(ctx.group)  # gradients go on after the last step too: home
            for tensor in (moving, gradient) if step + 1 < size else (gradient,):
                coming.send(rank + 1, tensor)
                coming.receive(rank - 1, tensor)
            coming.start()
            *rest, gradient = coming.done()
            moving = rest[0] if rest else moving
        return dq.to(q.dtype), *(total.to(k.dtype) for total in gradient), None, None


class _TokenRing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group) -> Tensor:
        found = Merged(q)

        def compute(keys: int | None, home: bool, q: Tensor) -> tuple[Tensor, ...]:
            output, lse = attended(q, half(keys, k), half(keys, v), scale, causal=home)
            return output.to(q.dtype), lse

        _go_round(group, (q,), compute, found.add)
        output = found.output.to(q.dtype)
        ctx.save_for_backward(q, k, v, output, found.lse)
        ctx.scale, ctx.group = scale, group
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse = ctx.saved_tensors
        wide = lse.dtype
        delta, dq = (dy * output).to(wide).sum(-1), torch.zeros_like(q, dtype=wide)
        dk, dv = (torch.zeros_like(t, dtype=wide) for t in (k, v))

        def compute(keys: int | None, home: bool, *moving: Tensor) -> tuple[Tensor, ...]:
            part, *others = gradients(*moving, half(keys, k), half(keys, v), ctx.scale, causal=home)  # type: ignore[misc]
            for total, other in zip((dk, dv), others, strict=True):
                half(keys, total).add_(other)
            return (part,)

        _go_round(ctx.group, (q, dy, lse, delta), compute, lambda queries, part: half(queries, dq).add_(part))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _go_round(
    group: Group, own: Sequence[Tensor], compute: Callable[..., tuple[Tensor, ...]], take: Callable[..., Any]
) -> None:
    """Tensors (B, H, T, ...) of queries go down from process to process; what each makes of them goes home, while it
    computes with the next ones.

    Args:
        compute: (which half of its keys they see, whether they are at home, tensors) to what goes home.
        take: (which half of the queries, what came) at home.
    """
    rank, size = group.rank(), group.size()
    moving: Sequence[Tensor] = own
    found: tuple[Tensor, ...] = ()
    for step in range(size + 1):
        coming, here = Exchange(group), (rank + step) % size  # whose queries are here
        met = (rank - step + 1) % size  # where the own ones were a step ago
        for tensor in found if step > 1 else ():
            coming.send((here - 1) % size, tensor)
            coming.receive(met, tensor, seen(rank, met)[0], seen((here - 1) % size, rank)[0])
        for tensor, all_of_it in zip(moving, own, strict=True) if step + 1 < size else ():
            had, wanted = seen(here, rank)[0], seen(here, (rank - 1) % size)[0]
            coming.send(rank - 1, tensor if had == wanted else half(wanted, tensor))
            coming.receive(rank + 1, all_of_it, seen((here + 1) % size, rank)[0])
        coming.start()
        before = found
        if step < size:
            found = compute(seen(here, rank)[1], step == 0, *moving)
        if step == 0:
            take(None, *found)
        came = coming.done()
        if step > 1:
            take(seen(rank, met)[0], *came[: len(before)])
            came = came[len(before) :]
        moving = came or moving
