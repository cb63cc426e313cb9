"""Pages of keys by an upper bound on what they hold, and streaming heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.duo_attention import DuoAttention, StreamingHeads
from zoo.layers.cache.heads import HeadsState
from zoo.layers.cache.in_time import InTime
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least
from zoo.layers.state import State


@dataclass(frozen=True)
class PagedHeads(Policy):
    """Heads that keep everything, and see of it the pages with the best scores while they decode; see ``LServe``."""

    budget: Budget = 4096
    page: int = 64
    logical: int = 16
    reuse: int = 4

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """A step to the chosen pages and to what is newer."""
        budget = torch.as_tensor(state.slots(self.budget, 2 * self.page), device=call.q.device)
        if call.length > 1 or state.filled <= int(budget.min()):
            return state.attend_all(call)
        tokens = InTime(state, call)
        # (B, G, k) pages, (B,) the place where newer ones begin
        chosen, start = self._chosen(state, call, tokens, budget)
        within = torch.arange(self.page, device=start.device)
        old = (chosen[..., None] * self.page + within).flatten(2)
        old = old.masked_fill((chosen < 0).repeat_interleave(self.page, 2), -1)
        newer = start[:, None] + torch.arange(int((tokens.total - start).max()), device=start.device)
        places = torch.cat([old, newer[:, None].expand(-1, old.shape[1], -1)], 2)
        return state.attend_to(call, tokens.slots(places), (places >= 0) & (places < tokens.total[:, None, None]))

    def bounds(self, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Of q (B, G, n, d) with all keys between low and high (B, G, pages, d): the largest products, (B, G, pages),
        of any of the n query heads."""
        return (q.clamp(min=0) @ high.mT + q.clamp(max=0) @ low.mT).amax(2)

    def _chosen(self, state: CacheState, call: Call, tokens: InTime, budget: Tensor) -> tuple[Tensor, Tensor]:
        total = tokens.total
        at = state.notes.get("at", torch.full_like(total, -self.reuse))
        stale = (total - at >= self.reuse) | (at <= budget)
        count = budget // self.page  # (), or (B,)
        others = int(count.max()) - 1
        if not bool(stale.any()):
            return state.notes["pages"], (at - 1) // self.page * self.page
        low, high = (
            tokens.blocks(name, self.logical, 0, reduce)
            for name, reduce in (("low", lambda keys: keys.amin(3)), ("high", lambda keys: keys.amax(3)))
        )
        each, old = self.page // self.logical, (total - 1) // self.page  # pages before the newest
        bound = self.bounds(call.q.unflatten(1, (low.shape[1], -1)).squeeze(3), low, high)
        pages = bound.shape[2] // each
        score = bound[..., : pages * each].unflatten(2, (pages, each)).amax(-1)
        score = score.masked_fill(torch.arange(pages, device=old.device) >= old[:, None, None], -torch.inf)
        best = score.topk(min(others, pages), dim=-1)
        beyond = torch.arange(best.values.shape[2], device=old.device) >= count.view(-1, 1, 1) - 1
        chosen = best.indices.masked_fill((best.values == -torch.inf) | beyond, -1)
        chosen = F.pad(chosen, (0, others - chosen.shape[2]), value=-1)
        if "pages" in state.notes:
            known = F.pad(state.notes["pages"], (0, others - state.notes["pages"].shape[2]), value=-1)
            chosen = torch.where(stale[:, None, None], chosen, known)
        at = torch.where(stale, total, at)
        state.notes["pages"], state.notes["at"] = chosen, at
        return chosen, (at - 1) // self.page * self.page


@dataclass(frozen=True)
class LServe(DuoAttention):
    r"""Streaming heads as in ``DuoAttention``; the others attend, while decoding, to pages of ``budget`` tokens in all.

    A physical page of ``page`` tokens is as good as the best of its logical pages, of which the least and the largest
    key in every channel are known:

    .. math:: s = \max_{l} \sum_i \max(q_i k^{max}_{l, i}, q_i k^{min}_{l, i})

    which no product of the query with a key of the page exceeds. The newest page is always seen; the choice of the
    others is kept for ``reuse`` steps, with the pages that have come since. Each key-value head chooses by the largest
    score of its query heads. The paper keeps keys and values in 4 bits: ``store=Quantized(4)``.

    Args:
        gates, sparsity, sink, recent: of ``DuoAttention``.
        budget: tokens that the other heads see, with the newest page.
        page, logical: tokens of a physical and of a logical page.
        reuse: steps that a choice is kept.

    Raises:
        ValueError: for a logical page that does not divide the physical one, or a budget of less than two of these.

    Paper: Yang et al., "LServe", arXiv 2502.14866.
    """

    paper: ClassVar[str] = "2502.14866"

    sink: int = 128
    recent: Budget = 256
    budget: Budget = 4096
    page: int = 64
    logical: int = 16
    reuse: int = 4

    def __post_init__(self):
        super().__post_init__()
        require_at_least(1, page=self.page, logical=self.logical, reuse=self.reuse)
        require_budget(budget=self.budget)
        if self.page % self.logical or (isinstance(self.budget, int) and self.budget < 2 * self.page):
            raise ValueError(
                "logical pages must divide a page, and the budget hold two of them: got "
                f"logical {self.logical}, page {self.page}, budget {self.budget}"
            )

    def build(self, key: Tensor, value: Tensor, **place: Any) -> State:
        """Heads of both kinds."""
        kinds = {
            True: PagedHeads(self.budget, self.page, self.logical, self.reuse, store=self.store),
            False: StreamingHeads(self.sink, self.recent, store=self.store),
        }
        retrieves = self.roles(place["order"], place["layers"], key.shape[1])
        return HeadsState.of_roles([kinds[one] for one in retrieves], key, value, **place)
