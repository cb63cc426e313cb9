"""The first tokens and the newest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.slots import taken
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keeps the first ``sink`` tokens, on which the softmax rests, and the ``recent`` newest: memory does not grow.

    As published, positions count within the cache: the first tokens are turned forward over the gap behind them, so
    that no distance is longer than the cache. A call attends to what is held and to itself before anything is evicted.

    Args:
        sink: first tokens that stay.
        recent: newest tokens that stay.
        renumber: close the gap; False leaves every token at its own position, as does attention that skips tokens.

    Paper: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453.
    """

    paper: ClassVar[str] = "2309.17453"

    sink: int = 4
    recent: Budget = 1020
    renumber: bool = True

    def __post_init__(self):
        require_at_least(0, sink=self.sink)
        require_budget(recent=self.recent)

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """To everything held, the first tokens moved up to the others."""
        if not (self.renumber and self.sink and state.evicted and state.aligned):
            return state.attend_all(call)
        position, key = state.position, state.key
        first = position.topk(min(self.sink, state.filled), dim=-1, largest=False).indices
        gap = (position.where(position >= self.sink, position.max()).amin(-1, keepdim=True) - self.sink).clamp(min=0)
        by = gap.expand_as(first).masked_fill(taken(position, first) >= self.sink, 0)
        turned = call.attention.turned(taken(key, first), by)
        index = first[..., None].expand_as(turned)
        return call.attention.attend(call.q, key.scatter(2, index, turned), state.value, state.mask(call))

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Evict the oldest of those that are neither first nor recent."""
        position = state.position.double()
        state.shrink(position.masked_fill(position < self.sink, float("inf")), self.sink + state.slots(self.recent))

    after_step = after_prefill

    def most_slots(self, tokens: int, steps: int = 0) -> int | None:
        """See ``Policy``."""
        return self.sink + self.recent if isinstance(self.recent, int) else None
