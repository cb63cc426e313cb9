"""The tokens of a batch that a layer computes, gathered row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY, Place
from zoo.layers.attention.state import KeyValueState
from zoo.layers.state import is_traced

TILE = 16  # tokens are gathered in multiples of it: the sums over them then round alike, however many others there are


@dataclasses.dataclass(frozen=True)
class ActiveTokens:
    """N of the T tokens of each row, in order of time; a row with fewer has empty places at the end.

    Attributes:
        index: (B, N) place in the sequence of T, also at an empty place.
        position: (B, N) position in time, ``EMPTY`` at an empty place and at padding.
        ids: (B, N) packed-sequence ids, or None.
    """

    index: Tensor
    position: Tensor
    ids: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, states: Sequence[KeyValueState | None] = (), seq_idx: Tensor | None = None) -> ActiveTokens:
        """All tokens of x (B, T, ...), which come after those that the states have seen; the states note them."""
        kept = [state for state in states if state is not None]
        place = Place.of(x, kept[0] if kept else None, seq_idx)
        for state in kept:
            state.advance(place)
        index = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        position = place.position.expand(x.shape[:2])
        return cls(index, position if seq_idx is None else position.masked_fill(seq_idx < 0, EMPTY), place.ids)

    @property
    def valid(self) -> Tensor:
        """(B, N), False at an empty place and at padding."""
        return self.position != EMPTY

    def keep(self, mask: Tensor, *tensors: Tensor, width: int | None = None) -> tuple[ActiveTokens, tuple[Tensor, ...]]:
        """Those of the tokens where ``mask`` (B, N) is True, and what belongs to them of ``tensors`` (B, N, ...).

        ``width``: the new N, at least the tokens any row keeps. None: as many as the fullest row keeps, rounded up to a
        multiple of ``TILE``; in a traced program, whose shapes cannot depend on data, as before.
        """
        mask = mask & self.valid
        if width is None:
            known = not is_traced(mask) and len(mask) > 0
            width = min(mask.shape[1], -(-int(mask.sum(1).max()) // TILE) * TILE) if known else mask.shape[1]
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        index, position, kept = (t.gather(1, order) for t in (self.index, self.position, mask))
        ids = None if self.ids is None else self.ids.gather(1, order)
        gathered = (t.gather(1, order) if t.dim() == 2 else t.take_along_dim(order[..., None], 1) for t in tensors)
        return ActiveTokens(index, position.masked_fill(~kept, EMPTY), ids), tuple(gathered)

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """x (B, T, D) plus ``update`` (B, N, D) at these tokens; all others stay as they are."""
        update = update.to(x.dtype).masked_fill(~self.valid[..., None], 0)
        return x.scatter_add(1, self.index[..., None].expand_as(update), update)

    def sequence_length(self) -> Tensor:
        """(B, N): tokens here of the packed sequence each token belongs to."""
        if self.ids is None:
            return self.valid.sum(1, keepdim=True).expand(self.index.shape)
        ordered, ids = self.ids.sort(1).values, self.ids.contiguous()
        return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)

    def rank(self, score: Tensor) -> Tensor:
        """(B, N): how many tokens of its packed sequence have a better ``score`` (B, N); empty places come last."""
        order = score.masked_fill(~self.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        ids = torch.zeros_like(self.index) if self.ids is None else self.ids
        order = order.gather(1, ids.gather(1, order).argsort(dim=1, stable=True))
        ordered = ids.gather(1, order)
        rank = torch.arange(order.shape[1], device=order.device) - torch.searchsorted(ordered, ordered)
        return torch.empty_like(order).scatter(1, order, rank)
