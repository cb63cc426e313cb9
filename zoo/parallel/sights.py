"""Which pieces of a shared sequence see which, where not every query sees every earlier key.

Process r of P has the pieces r and 2 P - 1 - r of 2 P, its halves. A key is seen from its own position on, by the
queries of its own sequence, less than a window later.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import torch
from torch import Tensor

Halves = tuple[int, ...]  # of the tokens of a process: 0, 1 or both


@dataclasses.dataclass(frozen=True)
class Block:
    """The queries of one piece and the keys of another.

    Attributes:
        queries, keys: the first position of each.
        length: tokens of a piece.
        window: keys a query sees at most, itself included; None for all.
        query_ids, key_ids: (B, length), sequences that do not see each other; None for one.
    """

    queries: int
    keys: int
    length: int
    window: int | None = None
    query_ids: Tensor | None = None
    key_ids: Tensor | None = None

    @property
    def rows(self) -> int:
        """Queries to attend at once, so that few keys are read that none of them sees."""
        return self.length if self.window is None else max(self.window, 64)

    def near(self, start: int, stop: int) -> slice:
        """The keys that may be seen by the queries from ``start`` to ``stop`` of the piece."""
        ahead = self.queries - self.keys
        first = 0 if self.window is None else max(0, ahead + start - self.window + 1)
        return slice(min(first, self.length), max(0, min(self.length, ahead + stop)))

    def mask(self, start: int, stop: int, device: torch.device) -> Tensor | None:
        """Which of the ``near`` keys each of these queries sees, (t, S) or (B, 1, 1, t, S); None for all."""
        near, ahead = self.near(start, stop), self.queries - self.keys
        wide = self.window is not None and ahead + stop - 1 - near.start >= self.window
        if not wide and ahead >= self.length and self.query_ids is None:
            return None
        rows = torch.arange(start, stop, device=device)[:, None]
        back = ahead + rows - torch.arange(near.start, near.stop, device=device)
        mask = back >= 0 if self.window is None else (back >= 0) & (back < self.window)
        if self.query_ids is None or self.key_ids is None:
            return mask
        same = self.query_ids[:, start:stop, None] == self.key_ids[:, None, near]
        return (mask & same)[:, None, None]


@dataclasses.dataclass(frozen=True)
class Sight:
    """Of P processes, each with ``2 * length`` tokens.

    Attributes:
        processes: P.
        length: tokens of a piece.
        window: see ``Block``.
        ids: (B, 2 P length) of all tokens, negative at padding; None for one sequence a row.
    """

    processes: int
    length: int
    window: int | None = None
    ids: Tensor | None = None

    def pieces(self, rank: int) -> tuple[int, int]:
        """Of a process."""
        return rank, 2 * self.processes - 1 - rank

    def pairs(self, queries: int, keys: int) -> list[tuple[int, int]]:
        """Which halves of one process's queries see which of another's keys; at home the own half comes first, as
        every query sees itself."""
        found = [
            (a, b)
            for a, piece in enumerate(self.pieces(queries))
            for b, other in enumerate(self.pieces(keys))
            if self.sees(piece, other)
        ]
        return sorted(found, key=lambda pair: pair[0] != pair[1])

    def queries(self, queries: int, keys: int) -> Halves:
        """Which halves of one process's queries see any of another's keys."""
        return tuple(sorted({a for a, _ in self.pairs(queries, keys)}))

    def keys(self, queries: int, keys: int) -> Halves:
        """Which halves of one process's keys are seen by any of another's queries."""
        return tuple(sorted({b for _, b in self.pairs(queries, keys)}))

    def sees(self, piece: int, other: int) -> bool:
        """Whether a query of a piece may see a key of another, for all that their nearest tokens and ids say."""
        near = self.window is None or (piece - other - 1) * self.length + 1 < self.window
        return piece == other or (piece > other and near and self._shared(piece, other))

    def block(self, queries: int, keys: int, a: int, b: int) -> Block:
        """Half a of one process's queries and half b of another's keys."""
        piece, other = self.pieces(queries)[a], self.pieces(keys)[b]
        ids = None, None
        if self.ids is not None and not self._alike(piece, other):
            ids = tuple(self.ids[:, one * self.length : (one + 1) * self.length] for one in (piece, other))
        return Block(piece * self.length, other * self.length, self.length, self.window, *ids)

    @cached_property
    def _ranges(self) -> tuple[list[list[int]], list[list[int]]]:
        """The lowest and the highest id of every row and piece."""
        assert self.ids is not None
        low, high = self.ids.unflatten(1, (2 * self.processes, self.length)).aminmax(dim=2)
        return low.tolist(), high.tolist()

    def _shared(self, piece: int, other: int) -> bool:
        """Whether in any row two pieces have ids between the same bounds."""
        if self.ids is None:
            return True
        rows = zip(*self._ranges, strict=True)
        return any(low[piece] <= high[other] and low[other] <= high[piece] for low, high in rows)

    def _alike(self, piece: int, other: int) -> bool:
        """Whether in every row two pieces have one id."""
        rows = zip(*self._ranges, strict=True)
        return all(low[piece] == high[piece] == low[other] == high[other] for low, high in rows)
