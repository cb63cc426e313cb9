"""Tokens that recur are kept until they are overdue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_above, require_at_least


@dataclass(frozen=True)
class LazyEviction(Policy):
    r"""Evicts every ``window`` steps of decoding, and spares tokens that are about to be attended to again.

    A token is active where it is given more than ``threshold`` of the attention of any query head of its key-value
    head. With TS the last step at which it was, and MRI the longest interval between two such steps,

    .. math:: s = 2 \sigma\!\left(-\frac{t - TS}{MRI}\right) + 2 \sigma\!\left(-\frac{1}{MRI}\right)

    and the tokens with the best scores stay, with the newest ``window`` tokens. A token that was active once only, when
    it came, has an MRI of 0, and a score of 0. Among equals the newest stay. Between two evictions up to ``window``
    more tokens are held.

    Args:
        budget: tokens that stay, the window included.
        window: steps between evictions, and newest tokens that stay.
        threshold: of the attention that counts.

    Raises:
        ValueError: for a budget that does not exceed the window, or a threshold of 0 or less.

    Paper: Zhang et al., "LazyEviction", arXiv 2506.15969.
    """

    per_head: ClassVar[bool] = True
    paper: ClassVar[str] = "2506.15969"

    budget: Budget = 0.5
    window: int = 128
    threshold: float = 1e-4

    def __post_init__(self):
        require_budget(budget=self.budget)
        require_at_least(1, window=self.window)
        require_above(0, threshold=self.threshold)
        if isinstance(self.budget, int) and self.budget <= self.window:
            raise ValueError(
                f"budget must exceed the window, which always stays: got budget {self.budget}, window {self.window}"
            )

    def start(self, state: CacheState) -> None:
        """The last active position and the longest interval of each slot."""
        state.add("active", state.heads, dtype=torch.int64)
        state.add("interval", state.heads, dtype=torch.int64)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Note who was active; a prompt itself is not evicted."""
        active, interval = state.held("active"), state.held("interval")
        fresh = state.position >= call.positions.min(1).values[:, None, None]
        active = torch.where(fresh & state.real, state.position, active)  # a token is active when it comes
        for start in range(0, call.length, 256):
            part = call.part(start, start + 256)
            given = state.weights(part).amax(2) > self.threshold  # (B, G, n, S)
            for step in range(part.length):
                now, hit = part.positions[:, step, None, None], given[:, :, step]
                interval = torch.where(hit, torch.maximum(interval, now - active), interval)
                active = torch.where(hit, now, active)
        state.renew("active", active)
        state.renew("interval", interval)

    def after_step(self, state: CacheState, call: Call) -> None:
        """Note who was active, and evict where the window is over."""
        self.after_prefill(state, call)
        budget = state.slots(self.budget, least=self.window + 1)
        budget = int(budget.max()) if isinstance(budget, Tensor) else budget
        held = state.real.sum(-1).amax(1)  # (B,)
        due = held >= budget + self.window
        if bool(due.any()):
            score = self.score(state).masked_fill(state.newest(self.window), torch.inf)
            state.shrink(score, held.masked_fill(due, budget))

    def score(self, state: CacheState) -> Tensor:
        """Of the slots in use, (B, G, filled)."""
        interval = state.held("interval").double()
        since = state.now - 1 - state.held("active")
        score = 2 * torch.sigmoid(-since / interval) + 2 * torch.sigmoid(-1 / interval)
        return score.masked_fill(interval == 0, 0) + 1e-6 * state.position.double() / state.now

    def most_slots(self, tokens: int, steps: int = 0) -> int | None:
        """See ``Policy``; a prompt beyond that is evicted from at the first step."""
        if not isinstance(self.budget, int):
            return None
        return max(self.budget + self.window, tokens) if steps == 0 else self.budget + self.window
