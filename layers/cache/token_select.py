"""The tokens that most heads vote for."""

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
from zoo.layers.cache.slots import taken
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class TokenSelect(Policy):
    r"""Attends to the first tokens, to the newest, and to the ``top_k`` of the others that the heads vote for; nothing
    is evicted.

    .. math:: v_j = \sum_h \mathrm{softmax}_j (\bar q_h \cdot k_{h, j} / \sqrt d)

    with :math:`\bar q` the mean over the ``chunk`` of queries that are computed together, and queries and keys as they
    are before they are turned. All heads see the same tokens, at positions without gaps. A selection is kept while the
    cosine of the present mean query with that which made it exceeds ``reuse``. Where everything fits this is full
    attention.

    Args:
        init: first tokens that are always seen.
        local: tokens before a chunk that are always seen.
        top_k: others.
        chunk: queries that choose together.
        reuse: least cosine at which a selection is kept; None for a new one every time.

    Paper: Wu et al., "TokenSelect", arXiv 2411.02886.
    """

    channels: ClassVar[bool] = True
    paper: ClassVar[str] = "2411.02886"

    init: int = 128
    local: int = 512
    top_k: Budget = 2048
    chunk: int = 512
    reuse: float | None = 0.9

    def __post_init__(self):
        require_at_least(0, init=self.init, local=self.local)
        require_budget(top_k=self.top_k)
        require_at_least(1, chunk=self.chunk)
        require_at_least(-1, reuse=self.reuse)

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """To what is selected."""
        if self._fits(state):
            return state.attend_all(call)
        y, state.scratch = self._run(state, call)
        return y

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Note the last selection, and what asked for it."""
        if not self._fits(state):
            state.notes |= self._run(state, call)[1] if state.scratch is None else state.scratch

    after_step = after_prefill

    def _fits(self, state: CacheState) -> bool:
        """Whether all that is held is seen."""
        return state.filled <= self.init + self.local + int(torch.as_tensor(state.slots(self.top_k)).min())

    def _run(self, state: CacheState, call: Call) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs (B, H, T, d), and the selection."""
        tokens, outputs = InTime(state, call), []
        notes = {name: state.notes[name] for name in ("chosen", "query") if name in state.notes}
        for part, before in tokens.chunks(self.chunk):
            notes = self._select(state, part, tokens, before - self.local, notes)
            outputs.append(self._chunk(state, part, tokens, before, notes["chosen"]))
        return tokens.joined(outputs), notes

    def _chunk(self, state: CacheState, call: Call, tokens: InTime, before: Tensor, chosen: Tensor) -> Tensor:
        edge = before - self.local  # (B,), where the newest tokens begin
        first = torch.arange(self.init, device=edge.device).expand(len(edge), -1)
        start = edge.clamp(min=self.init)
        newest = start[:, None] + torch.arange(
            int((before + call.real.sum(1) - start).max().clamp(min=0)), device=edge.device
        )
        places = torch.cat([first, chosen, newest], 1)
        ends = (before + call.real.sum(1))[:, None]
        there = (places >= 0) & (places < ends)
        index = (there.cumsum(1) - 1)[:, None]  # positions without gaps
        query = before[:, None] + call.real.cumsum(1) - 1  # (B, T), places
        shift = (there.sum(1, keepdim=True) - ends + query - call.positions).masked_fill(~call.real, 0)
        slots = tokens.slots(places[:, None])
        position = taken(state.position, slots)
        key = call.attention.turned(taken(state.key, slots), (index - position).masked_fill(~there[:, None], 0))
        seen = (places[:, None] <= query[..., None]) & there[:, None] | ~call.real[..., None]
        q = call.attention.turned(call.q, shift[:, None])
        return call.attention.attend(q, key, taken(state.value, slots), seen[:, None])

    def _select(
        self, state: CacheState, call: Call, tokens: InTime, edge: Tensor, notes: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The places "chosen" (B, k) in order, -1 where there are fewer, and the "query" (B, H d) that asked."""
        real, length = call.real[:, None, :, None], state.filled
        raw = call.attention.turned(call.q, -call.positions.masked_fill(~call.real, 0)[:, None])
        query = (raw * real).sum(2) / real.sum(2).clamp(min=1)  # (B, H, d)
        known, count = notes.get("chosen"), torch.as_tensor(state.slots(self.top_k), device=edge.device)
        stale = torch.ones_like(edge, dtype=torch.bool)
        if known is not None and self.reuse is not None:
            near = F.cosine_similarity(query.flatten(1), notes["query"], dim=1)
            stale = (near <= self.reuse) | ((known >= 0).sum(1) < count)
            if not bool(stale.any()):
                return notes
        slots = tokens.order[:, None]
        key = taken(state.key, slots)
        key = call.attention.turned(key, -taken(state.position, slots).masked_fill(~taken(state.real, slots), 0))
        place = torch.arange(length, device=edge.device)
        candidate = (place >= self.init) & (place < edge[:, None])  # (B, S)
        logits = call.attention.logits(query[:, :, None], key, key).masked_fill(
            ~candidate[:, None, None, None], -torch.inf
        )
        votes = call.attention.weights(logits).nan_to_num(0.0).sum((1, 2, 3)).masked_fill(~candidate, -1.0)
        most = int(count.max())
        best = votes.topk(min(most, length), dim=1)
        beyond = torch.arange(best.values.shape[1], device=edge.device) >= count.view(-1, 1)
        chosen = best.indices.masked_fill((best.values < 0) | beyond, -1).sort(1).values
        chosen = F.pad(chosen, (most - chosen.shape[1], 0), value=-1)
        if known is not None:
            known = F.pad(known, (most - known.shape[1], 0), value=-1)
            chosen = torch.where(stale[:, None], chosen, known)
            query = torch.where(stale[:, None, None], query, notes["query"].view_as(query))
        return {"chosen": chosen, "query": query.flatten(1)}
