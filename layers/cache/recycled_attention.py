"""Full attention now and then, and between what it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.slots import best
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class RecycledAttention(Policy):
    """Every ``stride`` steps a full one; the steps between attend to ``top_k`` tokens that it looked at most.

    Each key-value head takes the tokens with the largest attention, added up over its query heads, in the last full
    step; a token that has come since takes the place of the lowest. A prompt is a full step, whose last token
    looks. Nothing is evicted.

    Args:
        top_k: tokens that a step between sees.
        stride: steps from one full step to the next.
        check: steps between two looks at the query; None for full steps at fixed times alone.
        similarity: at a look, a full step follows where the cosine of the present queries with those of the last full
            step is below this.

    Raises:
        ValueError: for numbers below 1, or tokens out of range.

    Paper: Xu et al., "Recycled Attention: Efficient inference for long-context language models".
    """

    paper: ClassVar[str] = "Xu et al., TMLR 2025"

    top_k: Budget = 4096
    stride: int = 50
    check: int | None = None
    similarity: float = 0.8

    def __post_init__(self):
        require_budget(top_k=self.top_k)
        require_at_least(1, stride=self.stride, check=self.check)

    def start(self, state: CacheState) -> None:
        """What the last full step gave."""
        state.add("score", state.heads)

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """To everything, or to what was looked at."""
        full = self._full(state, call)
        count = state.slots(self.top_k)
        if bool(full.all()) or (isinstance(count, int) and state.filled <= count):
            return state.attend_all(call)
        last = state.notes["last"][:, None, None]
        score = state.held("score").masked_fill(state.position > last, torch.inf).masked_fill(~state.real, -torch.inf)
        y = state.attend_to(call, *best(score, count))
        return torch.where(full[:, None, None, None], state.attend_all(call), y) if bool(full.any()) else y

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Note what the last token looks at, in the rows of a full step."""
        full, newest = self._full(state, call), call.newest(1)
        last, query = newest.positions[:, 0], newest.q.flatten(1)
        if bool(full.any()):
            score = state.weights(newest).sum((2, 3))
            state.renew("score", torch.where(full[:, None, None], score, state.held("score")))
        if not bool(full.all()):
            last = torch.where(full, last, state.notes["last"])
            query = torch.where(full[:, None], query, state.notes["query"])
        state.notes["last"], state.notes["query"] = last, query

    after_step = after_prefill

    def _full(self, state: CacheState, call: Call) -> Tensor:
        """(B,), the rows of which this is a full step."""
        if call.length > 1 or "last" not in state.notes:
            return torch.ones(len(call.q), dtype=torch.bool, device=call.q.device)
        since = call.positions[:, 0] - state.notes["last"]
        full = since >= self.stride
        if self.check is not None:
            near = F.cosine_similarity(call.q.flatten(1), state.notes["query"], dim=1)
            full = full | ((since % self.check == 0) & (near < self.similarity))
        return full & call.real[:, 0]
