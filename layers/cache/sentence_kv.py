"""The sentences of a prompt that the sentence being written asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.in_time import InTime
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class SentenceKV(Policy):
    r"""Attends while decoding to whole sentences, ranked by what the sentence that is being written asks for.

    Of a prompt ``factor`` times the budget stay, the tokens that its last ``window`` queries look at most (the mean of
    all heads, the largest of ``kernel`` neighbours). A sentence ends with one of the ``ends``, and is known by the mean
    of its keys. A step asks with the mean of the queries since the last end. Of each key-value head's sentences the
    best are seen, by the mean of its query heads, as long as a whole one fits into the budget beside the first and the
    newest tokens. The first token of a sentence sees everything that is held. What is generated is added.

    Args:
        ends: ids of the tokens that end a sentence; without any, the text is one sentence.
        budget: tokens that a step sees.
        factor: tokens of a prompt that stay, in budgets.
        first, recent: tokens of the beginning and newest tokens that a step always sees.
        window, kernel: see above; the kernel is odd.

    Raises:
        ValueError: for a budget that does not exceed the first and the newest tokens, or an even kernel.

    Paper: Zhu et al., "SentenceKV", arXiv 2504.00970.
    """

    channels: ClassVar[bool] = True
    paper: ClassVar[str] = "2504.00970"

    ends: tuple[int, ...] = ()
    budget: Budget = 1024
    factor: float = 3.0
    first: int = 32
    recent: int = 32
    window: int = 32
    kernel: int = 7

    def __post_init__(self):
        require_budget(budget=self.budget)
        require_at_least(0, first=self.first)
        require_at_least(1, factor=self.factor, recent=self.recent, window=self.window, kernel=self.kernel)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that a score stays in its place, got {self.kernel}")
        if isinstance(self.budget, int) and self.budget <= self.first + self.recent:
            raise ValueError(
                "budget must exceed the first and the newest tokens, which are always seen: got "
                f"budget {self.budget}, first {self.first}, recent {self.recent}"
            )

    def start(self, state: CacheState) -> None:
        """The ids of the tokens."""
        state.add("token", 1, dtype=torch.int64)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Evict what the window does not look at; a new sentence begins."""
        slots = torch.as_tensor(state.slots(self.budget, self.first + self.recent + 1), device=call.q.device)
        stays = (slots * self.factor).long().expand(len(call.q))
        if bool((state.real[:, 0].sum(-1) > stays).any()):
            weights = state.weights(call.newest(self.window)).mean((1, 2, 3))[:, None]  # (B, 1, filled)
            score = F.max_pool1d(weights, self.kernel, stride=1, padding=self.kernel // 2)
            always = state.newest(self.window) | (state.position < self.first)
            state.shrink(score.masked_fill(always, torch.inf), stays)
        state.notes["asked"] = torch.zeros(len(call.q), call.q[0, :, 0].numel(), device=call.q.device)
        state.notes["count"] = torch.zeros(len(call.q), device=call.q.device)

    def after_step(self, state: CacheState, call: Call) -> None:
        """Add up the queries of the sentence."""
        if "count" not in state.notes:
            return self.after_prefill(state, call)
        token = state.held("token")[:, 0, state.filled - call.length :]
        for step in range(call.length):
            real = call.real[:, step]
            over = self.over(token[:, step]) & real
            asked = state.notes["asked"] + call.q[:, :, step].flatten(1) * real[:, None]
            state.notes["asked"] = asked.masked_fill(over[:, None], 0)
            state.notes["count"] = (state.notes["count"] + real).masked_fill(over, 0)

    def over(self, token: Tensor) -> Tensor:
        """Where a token ends a sentence."""
        return torch.isin(token, torch.tensor(self.ends, dtype=torch.int64, device=token.device))

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """A step to the sentences that it asks for."""
        slots = state.slots(self.budget, self.first + self.recent + 1)
        begins = state.notes.get("count", call.q.new_zeros(len(call.q))) == 0  # (B,)
        whole = begins | (state.real[:, 0].sum(-1) <= slots)  # rows that see everything
        if call.length > 1 or bool(whole.all()):
            return state.attend_all(call)
        tokens, key = InTime(state, call), state.key
        order = tokens.order
        over = self.over(state.held("token")[:, 0].gather(1, order))
        there = torch.arange(state.filled, device=order.device) < tokens.total[:, None]  # (B, filled), places
        sentence = (over.cumsum(1) - over.long()).masked_fill(~there, 0)
        length = torch.zeros_like(sentence).scatter_add(1, sentence, there.long())  # (B, most)
        keys = key.take_along_dim(order[:, None, :, None], 2) * there[:, None, :, None]
        sums = torch.zeros_like(keys).scatter_add(2, sentence[:, None, :, None].expand_as(keys), keys)
        mean = sums / length.clamp(min=1)[:, None, :, None]
        query = (state.notes["asked"] + call.q[:, :, 0].flatten(1)) / (state.notes["count"] + 1)[:, None]
        query = query.view(len(query), key.shape[1], -1, key.shape[-1]).mean(2).to(key.dtype)  # (B, G, d)
        score = torch.einsum("bgd,bgnd->bgn", query, mean).masked_fill((length == 0)[:, None], -torch.inf)
        rank = score.argsort(dim=-1, descending=True, stable=True)
        taken = length[:, None].expand_as(rank).gather(2, rank).cumsum(-1)
        room = torch.as_tensor(slots, device=order.device).view(-1, 1, 1) - self.first - self.recent
        chosen = torch.zeros_like(rank, dtype=torch.bool).scatter(2, rank, taken <= room)
        seen = chosen.gather(2, sentence[:, None].expand_as(chosen))
        place = torch.arange(state.filled, device=order.device)
        seen = seen | (place < self.first) | (place >= tokens.total[:, None, None] - 1 - self.recent)
        seen = (seen | whole[:, None, None]) & there[:, None]
        places = (~seen).to(torch.uint8).argsort(dim=-1, stable=True)[..., : int(seen.sum(-1).max())]
        return state.attend_to(call, tokens.slots(places), seen.gather(2, places))
