"""Tokens in chunks that begin where their sequences begin, in every row at its own places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.state import is_traced


@dataclass(frozen=True)
class Piece:
    """Steps of one call that lie in one chunk of each row.

    Attributes:
        index: which steps: a slice, or (B, n) of each row, where those that are not ``valid`` repeat any.
        first: their first slot in the chunk.
        valid: (B, n), False where there is no step; None where there are n in every row.
        fresh: (B,), rows in which a sequence begins here; None for none.
        complete: rows whose chunk ends here: all or none, or (B,).
    """

    index: slice | Tensor
    first: int
    valid: Tensor | None
    fresh: Tensor | None
    complete: bool | Tensor

    def take(self, x: Tensor) -> Tensor:
        """The piece (B, n, ...) of x (B, T, ...)."""
        if isinstance(self.index, slice):
            return x[:, self.index]
        return taken(x, self.index)


class Grid:
    """The steps of a call in chunks of ``size``.

    Args:
        like: (B, T, ...), the steps.
        size: steps a chunk.
        phase: (B,) int64, steps that each row's last chunk has already; None for none.
        seq_idx: (B, T), the sequences of the steps; None for one.
        rows: (B,), whether the first step continues the sequence of the phase; None: it does.
    """

    def __init__(
        self, like: Tensor, size: int, phase: Tensor | None, seq_idx: Tensor | None, rows: Tensor | None = None
    ):
        self.size, (batch, length) = size, like.shape[:2]
        self.place: Tensor | None = None
        given = phase
        phase = torch.zeros(batch, dtype=torch.int64, device=like.device) if given is None else given
        uniform = seq_idx is None and (given is None or (not is_traced(given) and len(set(given.tolist())) < 2))
        if uniform:
            start = int(phase[0]) if given is not None and batch else 0
            self.pieces, self.phase = list(_slices(start, length, size)), (phase + length) % size
        else:
            self._lay(like, phase, seq_idx, rows)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)

    def join(self, outputs: list[Tensor]) -> Tensor:
        """What was made of the pieces, (B, n, ...) each, to (B, T, ...)."""
        y = torch.cat(outputs, dim=1)
        return y if self.place is None else taken(y, self.place)

    def _lay(self, like: Tensor, phase: Tensor, seq_idx: Tensor | None, rows: Tensor | None) -> None:
        """Every row's steps where its own chunks have them."""
        (batch, length), device = like.shape[:2], like.device
        steps = torch.arange(length, device=device).expand(batch, -1)
        begins = torch.zeros(batch, length, dtype=torch.bool, device=device)
        if seq_idx is not None:
            begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
        if rows is not None:
            begins = torch.cat([begins[:, :1] | ~rows[:, None], begins[:, 1:]], dim=1)
        last = torch.where(begins, steps, -1).cummax(1).values  # where the present sequence began; -1: before the call
        position = torch.where(last < 0, steps + phase[:, None], steps - last)
        slot = position % self.size
        opens = slot == 0
        chunk = opens.cumsum(1) - opens[:, :1].long()
        count = length // self.size + 2 if seq_idx is None else length
        count = min(count, length) if is_traced(like) else int(chunk.max()) + 1 if chunk.numel() else 1
        self.place, self.phase = chunk * self.size + slot, (slot[:, -1] + 1) % self.size
        total = count * self.size
        index = torch.zeros(batch, total, dtype=torch.int64, device=device).scatter(1, self.place, steps)
        valid, fresh = (
            torch.zeros(batch, total, dtype=torch.bool, device=device).scatter(1, self.place, given)
            for given in (torch.ones_like(begins), begins)
        )
        self.pieces = [
            Piece(i, 0, v, f.any(1), v[:, -1])
            for i, v, f in zip(*(t.split(self.size, dim=1) for t in (index, valid, fresh)), strict=True)
        ]


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Of x (B, T, ...) the steps (B, n) of each row."""
    return x.take_along_dim(index.view(*index.shape, *[1] * (x.dim() - 2)), dim=1)


def _slices(start: int, length: int, size: int) -> Iterator[Piece]:
    begin = 0
    while begin < length:
        first = (start + begin) % size
        end = min(length, begin + size - first)
        yield Piece(slice(begin, end), first, None, None, first + end - begin == size)
        begin = end
