"""Where a text surprises, and where the graph of its tokens is cut best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.state import CacheState


def surprising(nats: Tensor, gamma: float, memory: int) -> Tensor:
    """Which of the surprises (n,) exceed mean + gamma deviations of the up to ``memory`` ones before; not the first."""
    nats = nats.double()
    sums = F.pad(torch.stack([nats, nats.square()]).cumsum(1), (1, 0))
    place = torch.arange(len(nats), device=nats.device)
    first = (place - memory).clamp(min=0)
    mean, square = (sums[:, place] - sums[:, first]) / (place - first).clamp(min=1)
    return (nats > mean + gamma * (square - mean.square()).clamp(min=0).sqrt()) & (place > 0)


def modularity(similar: Tensor) -> Tensor:
    r"""Of the graph A (n, n), symmetric, cut in two before each place 1, ..., n - 1: (n - 1,).

    .. math:: \frac{1}{2m} \sum_{ij} \left(A_{ij} - \frac{d_i d_j}{2m}\right) [i, j \text{ on one side}],
              \quad d_i = \sum_j A_{ij}, \; 2m = \sum_i d_i
    """
    first, second, cut = _sides(similar)
    total = similar.sum()
    degrees = (first + cut).square() + (second + cut).square()
    return (first + second - degrees / total) / total


def conductance(similar: Tensor) -> Tensor:
    r"""Of the same cuts: :math:`\sum_{i \in S, j \notin S} A_{ij} / \min(\mathrm{vol} S, \mathrm{vol} \bar S)`, the
    volumes being sums within S, and within the rest: (n - 1,)."""
    first, second, cut = _sides(similar)
    return cut / torch.minimum(first, second).clamp(min=torch.finfo(cut.dtype).tiny)


def _sides(similar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums within the first part, within the second, and from the one to the other, of each cut."""
    sums = similar.cumsum(0).cumsum(1)
    first, whole = sums.diagonal()[:-1], sums[:-1, -1]
    return first, sums[-1, -1] - 2 * whole + first, whole - first


@torch.no_grad()
def tell_surprise(
    parts: Sequence[CacheState], tokens: Tensor, hidden: Tensor, read_out: Callable[[Tensor], Tensor], chunk: int = 256
) -> None:
    """Fill the slots of "surprise" of the newest tokens (B, T), read to the residual stream (B, T, dim).

    A token's is its negative log-probability in nats, by ``read_out`` of what came before it.
    """
    length, told = tokens.shape[1], [part for part in parts if part.aligned and "surprise" in part.data]
    if not told:
        return
    first = told[0]
    padding = first.position[:, 0, -length:] == EMPTY
    last, at = first.notes.get("last"), first.notes.get("read")
    known = last is not None and at is not None and int(at[0]) == first.seen - length
    before = hidden[:, :1] if not known or last is None else last[:, None].to(hidden.dtype)
    inside = F.pad(padding, (1, 0), value=True)[:, :-1]  # whose predecessor is in an earlier call
    before = torch.where(inside[..., None], before, torch.cat([before, hidden[:, :-1]], 1))
    nats = [
        F.cross_entropy(read_out(x).transpose(1, 2).float(), ids, reduction="none")
        for x, ids in zip(before.split(chunk, 1), tokens.split(chunk, 1), strict=True)
    ]
    surprise = torch.cat(nats, 1).masked_fill(padding | (inside & (not known)), 0)
    for part in told:
        held = part.held("surprise")
        part.renew("surprise", torch.cat([held[:, :, :-length], surprise[:, None].to(held.dtype)], 2))
    newest = hidden[:, -1] if last is None else torch.where(padding[:, -1:], last.to(hidden.dtype), hidden[:, -1])
    first.notes |= {"last": newest, "read": torch.full_like(tokens[:, 0], first.seen)}
