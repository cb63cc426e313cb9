"""Slots and new tokens in order of time, row by row: what retrieval counts blocks and windows in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from zoo.layers.cache.call import Call
from zoo.layers.cache.slots import taken
from zoo.layers.cache.state import CacheState


class InTime:
    """The held tokens of each row by their places 0, 1, ... in time, whatever padding stands between them.

    Args:
        state: whose heads share their slots.
        call: the newest tokens.

    Attributes:
        order: (B, filled), the slot of each place; those without a token come last.
        before: (B,), tokens held that are older than the call.
        total: (B,), tokens held.
    """

    def __init__(self, state: CacheState, call: Call):
        self.state = state
        self.order = state.position[:, 0].argsort(dim=-1, stable=True)
        self.total = state.real[:, 0].sum(1)
        self.before = self.total - call.real.sum(1)
        there = (~call.real).to(torch.uint8).argsort(dim=-1, stable=True)  # tokens of each row, then padding
        q = call.q.take_along_dim(there[:, None, :, None], 2)
        self._call, self._back = Call(q, call.positions.gather(1, there), call.attention), there.argsort(1)

    def chunks(self, size: int) -> Iterator[tuple[Call, Tensor]]:
        """The tokens of the call, so many at a time, and how many (B,) of each row are older."""
        before = self.before
        for start in range(0, self._call.length, size):
            part = self._call.part(start, start + size)
            yield part, before
            before = before + part.real.sum(1)

    def joined(self, outputs: list[Tensor]) -> Tensor:
        """The outputs (B, H, T, d) of the chunks, in the order of the call."""
        return torch.cat(outputs, dim=2).take_along_dim(self._back[:, None, :, None], 2)

    def slots(self, places: Tensor) -> Tensor:
        """Of places (B, 1 or G, n); any slot where there is no such place."""
        places = places.clamp(0, self.order.shape[1] - 1)
        return self.order[:, None].expand(-1, places.shape[1], -1).gather(2, places)

    def blocks(self, name: str, size: int, first: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Keys of blocks of ``size`` places from ``first`` on, reduced from (B, G, n, size, d) to (B, G, n, ...).

        Those that are full in every row are kept in the notes of the state.
        """
        known = self.state.notes.get(name)
        start = 0 if known is None else known.shape[2]
        full = (self.total - first).clamp(min=0) // size
        stop = int(full.max())
        if stop <= start:
            return known if known is not None else reduce(self._keys(first, size, 0))
        found = reduce(self._keys(first + start * size, size, stop - start))
        found = found if known is None else torch.cat([known, found], dim=2)
        self.state.notes[name] = found[:, :, : int(full.min())]
        return found

    def _keys(self, start: int, size: int, count: int) -> Tensor:
        places = torch.arange(start, start + size * count, device=self.order.device)
        keys = taken(self.state.key, self.slots(places.expand(len(self.order), 1, -1)))
        return keys.unflatten(2, (count, size))
