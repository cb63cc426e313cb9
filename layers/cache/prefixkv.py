"""One threshold for all layers: those with flat attention keep more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class PrefixKV(Policy):
    """Of a prompt each layer keeps the prefix of its tokens, by importance, that holds the same share of it.

    A token's importance is the attention it is given, over all queries and the mean of the heads. One share, found by
    binary search, is the largest at which the layers together keep what the ``budget`` allows. The ``first`` tokens and
    the last one stay. While decoding, where anything was evicted, each new token takes the place of the one that is
    ``lag`` slots before it, so that the size stays.

    Args:
        budget: tokens that a layer keeps, on average.
        first: tokens of the beginning that stay.
        lag: slots between a new token and the one that goes.
        shares: of each layer that the policy governs, the share of a prompt that it keeps, found before: in place of
            the search.

    Raises:
        ValueError: for a budget that does not exceed ``first``, or a lag below 1.

    Paper: Wang et al., "PrefixKV", arXiv 2412.03409.
    """

    paper: ClassVar[str] = "2412.03409"

    budget: Budget = 0.5
    first: int = 4
    lag: int = 25
    shares: tuple[float, ...] | None = None

    def __post_init__(self):
        require_budget(budget=self.budget)
        require_at_least(0, first=self.first)
        require_at_least(1, lag=self.lag)
        if isinstance(self.budget, int) and self.budget <= self.first:
            raise ValueError(
                f"budget must exceed the first tokens, which always stay: got budget {self.budget}, first {self.first}"
            )

    def start(self, state: CacheState) -> None:
        """The importance of each slot."""
        state.add("importance", 1)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Note the importance; ``after_layers`` evicts."""
        state.renew("importance", state.held("importance") + state.mass(call).mean((1, 2))[:, None])
        state.notes["due"] = torch.ones(len(call.q), device=call.q.device)

    def after_layers(self, states: Sequence[CacheState]) -> None:
        """Evict from all layers, after a prompt."""
        if any(state.notes.pop("due", None) is None for state in states):
            return
        scores = [self.protected(state) for state in states]
        counts = self.counts(states) if self.shares is None else self.fixed(states, self.shares)
        held = torch.stack([state.real[:, 0].sum(-1) for state in states])
        evicts = (counts < held).any(0)
        for state, score, count in zip(states, scores, counts, strict=True):
            state.shrink(score, count)
            state.notes["size"] = count.masked_fill(~evicts, -1)

    def after_step(self, state: CacheState, call: Call) -> None:
        """Evict the token ``lag`` slots before the new one, where the size is to stay."""
        size = state.notes.get("size")
        for _ in range(0 if size is None else call.length):
            due = (size >= 0) & (state.real[:, 0].sum(-1) > size)  # type: ignore[operator]
            if not bool(due.any()):
                return
            position = state.position.masked_fill(~state.real | (state.position < self.first), -1)
            oldest = position.topk(min(self.lag + 1, state.filled), dim=-1).values[..., -1:].clamp(min=0)
            goes = position.masked_fill(position < oldest, torch.iinfo(torch.int64).max).argmin(-1, keepdim=True)
            if bool(due.all()):
                state.drop(goes)
            else:
                state.keep(~due[:, None, None] | (torch.arange(state.filled, device=goes.device) != goes))

    def protected(self, state: CacheState) -> Tensor:
        """The importance of the slots in use (B, 1, filled), infinite for what stays."""
        stays = (state.position < self.first) | state.newest(1)
        return state.held("importance").masked_fill(~state.real, 0).masked_fill(stays, torch.inf)

    def counts(self, states: Sequence[CacheState]) -> Tensor:
        """How many tokens (layers, B) the layers keep."""
        shares, least = [], []
        for state in states:
            order = self.protected(state)[:, 0].argsort(dim=-1, descending=True, stable=True)
            importance = state.held("importance")[:, 0].masked_fill(~state.real[:, 0], 0).gather(1, order).double()
            shares.append((importance.cumsum(1) / importance.sum(1, keepdim=True)).contiguous())
            least.append(self.protected(state).isinf().sum((1, 2)))
        held = torch.stack([state.real[:, 0].sum(-1) for state in states])

        def kept(share: Tensor) -> Tensor:
            found = [torch.searchsorted(one, share[:, None])[:, 0] + 1 for one in shares]
            return torch.minimum(torch.maximum(torch.stack(found), torch.stack(least)), held)

        budget = sum(torch.as_tensor(state.slots(self.budget, self.first + 1), device=held.device) for state in states)
        low, high = torch.zeros(2, held.shape[1], dtype=torch.float64, device=held.device)
        high = high + 1
        for _ in range(40):
            middle = (low + high) / 2
            fits = kept(middle).sum(0) <= budget
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return torch.where(held.sum(0) <= budget, held, kept(low))

    def fixed(self, states: Sequence[CacheState], shares: Sequence[float]) -> Tensor:
        """How many tokens (layers, B) the layers keep by shares that are given.

        Raises:
            ValueError: for shares of another number of layers.
        """
        if len(shares) != len(states):
            raise ValueError(f"shares must be one a layer, {len(states)} here, got {len(shares)}")
        held = [state.real[:, 0].sum(-1) for state in states]
        return torch.stack([(one * share).ceil().long() for one, share in zip(held, shares, strict=True)])
