"""What the end of a prompt attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class SnapKV(Policy):
    """Keeps of a prompt the tokens that its last ``window`` tokens attend to, and these themselves.

    A token's score is the mean attention that the window gives it, averaged with its neighbours' within ``kernel``
    places, and over the query heads of a key-value head, each of which keeps its own tokens. Tokens that are generated
    are added and never evicted. Of a prompt in chunks each is compressed after it was read, with its own window.

    Args:
        budget: tokens of the prompt that stay, the window included.
        window: tokens whose attention counts.
        kernel: neighbours that share a score, odd.

    Raises:
        ValueError: for a budget that does not exceed the window, or an even kernel.

    Paper: Li et al., "SnapKV", arXiv 2404.14469.
    """

    per_head: ClassVar[bool] = True
    paper: ClassVar[str] = "2404.14469"

    budget: Budget = 1024
    window: int = 32
    kernel: int = 5

    def __post_init__(self):
        require_budget(budget=self.budget)
        require_at_least(1, window=self.window, kernel=self.kernel)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that a score stays in its place, got {self.kernel}")
        if isinstance(self.budget, int) and self.budget <= self.window:
            raise ValueError(
                f"budget must exceed the window, which always stays: got budget {self.budget}, window {self.window}"
            )

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Evict what the window does not look at."""
        budget = state.slots(self.budget, least=self.window + 1)
        if isinstance(budget, Tensor) or state.filled > budget:
            score = self.score(state, call).masked_fill(state.newest(self.window), float("inf"))
            state.shrink(score, budget, ordered=True)

    def score(self, state: CacheState, call: Call) -> Tensor:
        """Of the slots in use, (B, G, filled), those of the window apart."""
        weights = state.weights(call.newest(self.window)).mean(3)  # (B, G, H / G, filled)
        weights = weights.masked_fill(state.newest(self.window)[:, :, None], 0)
        pooled = F.avg_pool1d(weights.flatten(1, 2), self.kernel, stride=1, padding=self.kernel // 2)
        return pooled.unflatten(1, weights.shape[1:3]).mean(2)

    def most_slots(self, tokens: int, steps: int = 0) -> int | None:
        """See ``Policy``."""
        return self.budget + steps if isinstance(self.budget, int) else None
