"""Of a prompt, deep layers read what its last token looks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class PromptDistill(Policy):
    r"""One early layer chooses ``budget`` tokens of a prompt, and all later layers are given these alone.

    .. math:: s_j = \mathrm{mean}_h \; q_{h, last} \cdot k_{h, j} / \sqrt d

    averaged with its neighbours' within ``kernel`` places; there is no softmax. The last token always goes on. Tokens
    keep their positions; those that end have keys and values in the early layers alone. Of a prompt in chunks, each
    goes on with so many.

    Args:
        budget: tokens of a prompt that go on.
        layer: number of the attention layer that chooses; None for 13 of 32.
        kernel: neighbours that share a score, odd.
        trim: the early layers keep the chosen tokens alone, too.

    Raises:
        ValueError: for an even kernel.

    Paper: Jin et al., "PromptDistill", arXiv 2503.23274.
    """

    paper: ClassVar[str] = "2503.23274"

    budget: Budget = 1024
    layer: int | None = None
    kernel: int = 5
    trim: bool = False

    def __post_init__(self):
        require_budget(budget=self.budget)
        require_at_least(1, kernel=self.kernel)
        require_at_least(0, layer=self.layer)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that a score stays in its place, got {self.kernel}")

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Choose, in the layer that does."""
        chooser = state.layers * 13 // 32 if self.layer is None else min(self.layer, state.layers - 1)
        if state.order != chooser:
            return
        budget = state.slots(self.budget)
        budget = int(budget.max()) if isinstance(budget, Tensor) else budget
        if call.length > budget:
            state.notes["places"] = self.score(state, call).topk(budget, dim=-1).indices.sort(dim=-1).values

    def score(self, state: CacheState, call: Call) -> Tensor:
        """Of the tokens of a call, (B, T)."""
        logits = call.attention.logits(call.newest(1).q, state.key, state.value)[..., -call.length :]
        logits = logits.mean((1, 2, 3))  # (B, T)
        near, count = (
            F.avg_pool1d(one * call.real, self.kernel, stride=1, padding=self.kernel // 2)
            for one in (logits, torch.ones_like(logits))
        )
        score = (near / count).masked_fill(~call.real, -torch.inf)
        return score.index_fill(1, torch.tensor(call.length - 1, device=score.device), torch.inf)

    def after_layer(self, state: CacheState, hidden: Tensor, later: Sequence[CacheState]) -> Tensor | None:
        """The chosen tokens."""
        return state.notes.pop("places", None)

    def after_layers(self, states: Sequence[CacheState]) -> None:
        """Trim the early layers, whose keys are all there."""
        chosen = states[-1]
        if self.trim and not chosen.aligned:
            for state in states:
                if state.aligned and state.filled > chosen.filled:
                    state.keep((state.position[..., None] == chosen.position[:, :, None]).any(-1))
