"""The tokens of a batch that a layer computes, gathered row by row."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

EMPTY = 2**31 - 1  # the position of no token: later than all, so that no query sees it
TILE = 16  # tokens are gathered in multiples of it: the sums over them then round alike, however many others there are


@dataclasses.dataclass(frozen=True)
class ActiveTokens:
    """N of the T tokens of each row, in order of time; a row with fewer has empty places at the end.

    index: (B, N) place in the sequence of T, also at an empty place. position: (B, N) position in time, ``EMPTY`` at an
    empty place. ids: (B, N) packed-sequence ids, or None.
    """

    index: Tensor
    position: Tensor
    ids: Tensor | None = None

    @classmethod
    def all_of(cls, x: Tensor, past: int = 0, ids: Tensor | None = None) -> ActiveTokens:
        """All tokens of x (B, T, ...), the first at position ``past``."""
        index = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return cls(index, index + past, ids)

    @property
    def valid(self) -> Tensor:
        """(B, N), False at an empty place."""
        return self.position != EMPTY

    @property
    def real(self) -> Tensor:
        """(B, N), False at an empty place and at padding, whose ids are negative."""
        return self.valid if self.ids is None else self.valid & (self.ids >= 0)

    def keep(self, mask: Tensor, *tensors: Tensor, width: int | None = None) -> tuple[ActiveTokens, tuple[Tensor, ...]]:
        """Those of the tokens where ``mask`` (B, N) is True, and what belongs to them of ``tensors`` (B, N, ...).

        ``width``: the new N, at least the tokens any row keeps. None: as many as the fullest row keeps, rounded up to a
        multiple of ``TILE``; in a traced program, whose shapes cannot depend on data, as before.
        """
        mask = mask & self.valid
        if width is None:
            width = mask.shape[1] if is_traced(mask) else min(mask.shape[1], -(-int(mask.sum(1).max()) // TILE) * TILE)
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        index, position, kept = (t.gather(1, order) for t in (self.index, self.position, mask))
        ids = None if self.ids is None else self.ids.gather(1, order)
        gathered = (t.gather(1, order) if t.dim() == 2 else t.take_along_dim(order[..., None], 1) for t in tensors)
        return ActiveTokens(index, position.masked_fill(~kept, EMPTY), ids), tuple(gathered)

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """x (B, T, D) plus ``update`` (B, N, D) at these tokens; all others stay as they are."""
        update = update.to(x.dtype).masked_fill(~self.valid[..., None], 0)
        return x.scatter_add(1, self.index[..., None].expand_as(update), update)

    def visible(self, position: Tensor, ids: Tensor | None) -> Tensor:
        """(B, 1, N, S): which keys of position (B, S) and ids (B, S) each token sees: no later one, none of another
        sequence. An empty place sees those of its sequence, lest a softmax be over nothing."""
        mask = position[:, None] <= self.position[:, :, None]
        if ids is not None and self.ids is not None:
            mask = mask & (ids[:, None] == self.ids[:, :, None])
        return mask[:, None]

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


def is_traced(tensor: Tensor) -> bool:
    """Whether the values of ``tensor`` cannot be known now: a program is being traced, or it has none ("meta")."""
    return torch.compiler.is_compiling() or tensor.is_meta
