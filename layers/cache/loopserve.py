"""The lines of attention that a turn draws, and what the newest output looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.slots import best
from zoo.layers.cache.state import CacheState, visible
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class LoopServe(Policy):
    """A prompt, or a later turn, attends along the lines that carry ``alpha`` of its attention; a step to ``budget``
    tokens, chosen anew every ``every`` steps.

    A vertical line is a token, a slash line a distance: of both together each head takes, in the order of the
    attention that the last ``probes`` queries of the turn give them, as few as hold a share alpha of it. While
    decoding each key-value head takes the tokens with the largest attention from the last ``window`` tokens, and those
    that have come since the choice. Nothing is evicted: the next turn chooses among everything. Lines are a mask here,
    which changes what is seen and saves no time.

    Args:
        alpha: share of the attention that the lines hold; 1 for all lines.
        probes: queries whose attention counts for them.
        budget: tokens that a step sees.
        window: newest tokens whose attention chooses.
        every: steps from one choice to the next.

    Raises:
        ValueError: for a share outside (0, 1], numbers below 1, or a budget that ``every`` exceeds.

    Paper: Li et al., "LoopServe", arXiv 2507.13681; its abstract alone was at hand: how queries are sampled, and the
    sizes, are ours.
    """

    paper: ClassVar[str] = "2507.13681"

    alpha: float = 0.95
    probes: int = 64
    budget: Budget = 1024
    window: int = 16
    every: int = 16

    def __post_init__(self):
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha, a share of the attention, must be in (0, 1], got {self.alpha}")
        require_budget(budget=self.budget)
        require_at_least(1, probes=self.probes, window=self.window, every=self.every)
        if isinstance(self.budget, int) and self.every > self.budget:
            raise ValueError(
                f"the budget must hold the tokens that come between two choices, got budget {self.budget}, "
                f"every {self.every}"
            )

    def start(self, state: CacheState) -> None:
        """What the last choice was made by."""
        state.add("score", state.heads)

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """Along the lines, or to what was chosen."""
        if call.length > 1:
            return state.attend_all(call) if self.alpha == 1 else self.attend_along(state, call)
        count = state.slots(self.budget, self.every)
        if "last" not in state.notes or (isinstance(count, int) and state.filled <= count):
            return state.attend_all(call)
        newer = state.position > state.notes["last"][:, None, None]
        score = state.held("score").masked_fill(newer, torch.inf).masked_fill(~state.real, -torch.inf)
        return state.attend_to(call, *best(score, count))

    def attend_along(self, state: CacheState, call: Call, rows: int = 256) -> Tensor:
        """The queries of a turn, so many at once, to the tokens on a line, and to themselves."""
        lines, count = self.lines(state, call)
        parts = [call.part(start, start + rows) for start in range(0, call.length, rows)]
        seen = [visible(part, state.position) & self._crossed(state, part, lines, count) for part in parts]
        pairs = zip(parts, seen, strict=True)
        return torch.cat([part.attention.attend(part.q, state.key, state.value, mask) for part, mask in pairs], 2)

    def lines(self, state: CacheState, call: Call) -> tuple[Tensor, Tensor]:
        """Ranks (B, H, filled + distances) of the vertical lines and of the slash lines behind them, by their
        attention, and how many of the first ranks hold the share (B, H)."""
        probes = call.newest(self.probes)
        weights = state.weights(probes).flatten(1, 2)  # (B, H, P, filled)
        apart = _distance(state, probes).expand_as(weights)
        slashes = weights.new_zeros(*weights.shape[:2], int(_distance(state, call).max()) + 1)
        slashes = slashes.scatter_add(2, apart.flatten(2), weights.flatten(2))
        ranks = torch.cat([weights.sum(2), slashes], 2).argsort(dim=-1, descending=True, stable=True).argsort(-1)
        first = self._first(ranks, apart, state.filled)
        held = torch.zeros_like(ranks, dtype=weights.dtype).scatter_add(2, first.flatten(2), weights.flatten(2))
        wanted = self.alpha * weights.sum((2, 3))
        return ranks, (held.cumsum(-1) < wanted[..., None]).sum(-1) + 1

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """A turn's last tokens choose."""
        self._remember(state, call, torch.ones(len(call.q), dtype=torch.bool, device=call.q.device))

    def after_step(self, state: CacheState, call: Call) -> None:
        """The newest tokens choose where the time has come."""
        last = state.notes.get("last")
        now = call.positions.masked_fill(~call.real, -1).amax(1)
        self._remember(state, call, now >= 0 if last is None else now - last >= self.every)

    def _remember(self, state: CacheState, call: Call, chosen: Tensor) -> None:
        """Note the newest queries; in the rows that are ``chosen``, what they look at."""
        q, at = call.q, call.positions
        if "query" in state.notes:
            q, at = torch.cat([state.notes["query"], q], 2), torch.cat([state.notes["at"], at], 1)
        q, at = q[:, :, -self.window :].clone(), at[:, -self.window :].clone()
        state.notes["query"], state.notes["at"] = q, at
        if not bool(chosen.any()):
            return
        score = state.weights(Call(q, at, call.attention)).sum((2, 3))
        last = at.masked_fill(at == EMPTY, -1).amax(1)
        if "last" in state.notes:
            score = torch.where(chosen[:, None, None], score, state.held("score"))
            last = torch.where(chosen, last, state.notes["last"])
        state.renew("score", score)
        state.notes["last"] = last

    def _crossed(self, state: CacheState, call: Call, ranks: Tensor, count: Tensor) -> Tensor:
        """(B, H, T, filled), what lies on one of the first lines, or is the token itself, or is seen by padding."""
        apart = _distance(state, call)
        first = self._first(ranks, apart.expand(-1, ranks.shape[1], -1, -1), state.filled)
        return (first < count[..., None, None]) | (apart == 0) | ~call.real[:, None, :, None]

    def _first(self, ranks: Tensor, apart: Tensor, filled: int) -> Tensor:
        """(B, H, T, filled), the better rank of the two lines that cross at a query and a slot."""
        vertical, slash = ranks[:, :, None, :filled], ranks[:, :, filled:]
        return torch.minimum(vertical, slash.gather(2, apart.flatten(2)).unflatten(2, apart.shape[2:]))


def _distance(state: CacheState, call: Call) -> Tensor:
    """(B, 1, T, filled), how far back each slot lies; 0 for later ones and where there is no token."""
    queries = call.positions.masked_fill(~call.real, 0)
    return (queries[:, None, :, None] - state.position[:, :, None]).clamp(min=0)
