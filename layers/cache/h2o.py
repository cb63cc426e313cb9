"""The tokens that were attended to most, and the newest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState


@dataclass(frozen=True)
class H2O(Policy):
    r"""Keeps the ``heavy`` hitters, tokens with the largest sums of the attention given to them, and ``recent`` ones.

    .. math:: s_j = \sum_{t} \sum_{h} a_{t, h, j}

    over all queries since the token came and the query heads h of a key-value head, each of which keeps its own.

    Args:
        heavy: tokens that stay by their sums.
        recent: newest tokens that stay.

    Paper: Zhang et al., "H2O: Heavy-Hitter Oracle", arXiv 2306.14048.
    """

    per_head: ClassVar[bool] = True
    paper: ClassVar[str] = "2306.14048"

    heavy: Budget = 0.1
    recent: Budget = 0.1

    def __post_init__(self):
        require_budget(heavy=self.heavy, recent=self.recent)

    def start(self, state: CacheState) -> None:
        """The sums."""
        state.add("mass", state.heads)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Add up the attention, and evict what has least of it."""
        mass = state.held("mass") + state.mass(call).sum(2)
        state.renew("mass", mass)
        recent = state.slots(self.recent)
        state.shrink(mass.masked_fill(state.newest(recent), float("inf")), recent + state.slots(self.heavy))

    after_step = after_prefill

    def most_slots(self, tokens: int, steps: int = 0) -> int | None:
        """See ``Policy``."""
        return self.heavy + self.recent if isinstance(self.heavy, int) and isinstance(self.recent, int) else None
