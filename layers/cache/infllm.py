"""A window, and the blocks of the past that it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.call import Call
from zoo.layers.cache.in_time import InTime
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.slots import taken
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class InfLLM(Policy):
    r"""Attends to the ``local`` newest tokens, to the ``init`` first ones and to the ``top_k`` blocks of the others
    that the present queries ask for; nothing is evicted.

    Tokens that have left the window fill blocks. A block is known by the mean of its ``representatives``, for each
    query head the tokens with the largest sums of the attention that they were given within the window. All heads take
    the same blocks:

    .. math:: b = \mathrm{top}_k \sum_h \bar q_h \cdot r_{b, h}

    with :math:`\bar q` the mean over the ``chunk`` of queries that are computed together. What is not local, that is
    not among the ``local`` newest tokens of a query, stands at the one distance ``local`` from it, whatever its own; so
    this is full attention only while nothing has left the window. Tokens that have left it and fill no block yet are
    seen in the same way.

    Args:
        init: first tokens that are always seen.
        local: newest tokens that a query sees at their distances, itself included.
        block: tokens a block.
        top_k: blocks that are seen.
        representatives: tokens that stand for a block.
        chunk: queries that ask together.

    Raises:
        ValueError: for numbers below 1, more representatives than a block has tokens, or a chunk beyond the window.

    Paper: Xiao et al., "InfLLM", arXiv 2402.04617.
    """

    channels: ClassVar[bool] = True
    paper: ClassVar[str] = "2402.04617"

    init: int = 128
    local: int = 4096
    block: int = 128
    top_k: int = 16
    representatives: int = 4
    chunk: int = 512

    def __post_init__(self):
        require_at_least(0, init=self.init)
        require_at_least(
            1,
            local=self.local,
            block=self.block,
            top_k=self.top_k,
            representatives=self.representatives,
            chunk=self.chunk,
        )
        if self.representatives > self.block or self.chunk > self.local:
            raise ValueError(
                "a block must have as many tokens as representatives, and a chunk be at most the window: got "
                f"representatives {self.representatives}, block {self.block}, chunk {self.chunk}, local {self.local}"
            )

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """To the window and to what it asks for."""
        if "mass" not in state.data:
            state.add("mass", call.q.shape[1])
        y, *state.scratch = self._run(state, call)
        return y

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Note the attention within the window, and what stands for blocks."""
        mass, notes = self._run(state, call)[1:] if state.scratch is None else state.scratch
        state.renew("mass", mass)
        state.notes |= notes

    after_step = after_prefill

    def _run(self, state: CacheState, call: Call) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The outputs (B, H, T, d), the sums of the attention within the window (B, H, filled), and the notes."""
        mass, notes = state.held("mass"), dict(state.notes)
        if state.filled <= self.local:
            return state.attend_all(call), mass + state.mass(call).flatten(1, 2), notes
        tokens, outputs = InTime(state, call), []
        self.segment(state, call, tokens, notes)
        for part, before in tokens.chunks(self.chunk):
            y, mass = self._chunk(state, part, tokens.order, before, mass, notes)
            outputs.append(y)
        return tokens.joined(outputs), mass, notes

    def segment(self, state: CacheState, call: Call, tokens: InTime, notes: dict[str, Tensor]) -> None:
        """Before a call whose tokens are not all local: note where blocks end, if ``bounds`` does not know."""

    def bounds(self, before: Tensor, notes: dict[str, Tensor]) -> Tensor:
        """(B, n + 1), places where blocks begin and end; ``EMPTY`` where a row has fewer."""
        count = max(0, (int(before.max()) - self.local - self.init) // self.block)
        return self.init + self.block * torch.arange(count + 1, device=before.device).expand(len(before), -1)

    def choose(self, score: Tensor, notes: dict[str, Tensor]) -> Tensor:
        """Blocks (B, k) to be seen, of scores (B, n), -inf where a row has no such block; -1 for none."""
        best = score.topk(min(self.top_k, score.shape[1]), dim=1)
        return best.indices.masked_fill(best.values == -torch.inf, -1)

    def _chunk(
        self, state: CacheState, call: Call, order: Tensor, before: Tensor, mass: Tensor, notes: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Queries that ask together attend; ``before`` (B,) tokens came earlier."""
        attention, real, end = call.attention, call.real, state.filled
        total = before + real.sum(1)
        bounds = self.bounds(before, notes)
        blocks = (bounds[:, 1:] <= (before - self.local)[:, None]).sum(1)  # (B,), filled and out of the window
        start = bounds.gather(1, blocks[:, None])[:, 0].masked_fill(blocks == 0, 0)  # of what is in none of them
        query = before[:, None] + real.cumsum(1) - 1  # (B, T), places in time
        shift = (self.local - call.positions).masked_fill(~real, 0)[:, None]
        distant = attention.turned(call.q, shift)  # as at position ``local``, for keys that are turned back to 0

        near = start[:, None] + torch.arange(int((total - start).max()), device=start.device)
        far, chosen = self._far(state, distant, call, order, bounds[:, : int(blocks.max()) + 1], blocks, mass, notes)
        near_slots, far_slots = (order.gather(1, p.clamp(max=end - 1))[:, None] for p in (near, far))
        key, value = state.key, state.value
        front = min(near.shape[1], max(0, int((total - self.local - start).max())))

        logits = attention.logits(call.q, taken(key, near_slots), taken(value, near_slots))
        seen = (near[:, None] <= query[..., None]) | ~real[..., None]  # (B, T, n)
        local = query[..., None] - near[:, None] < self.local
        if front:
            others = attention.logits(distant, *self._raw(state, attention, near_slots[..., :front]))
            others = torch.where(local[:, None, None, :, :front], logits[..., :front], others)
            logits = torch.cat([others, logits[..., front:]], -1)
        far_logits = attention.logits(distant, *self._raw(state, attention, far_slots))
        logits = torch.cat([far_logits, logits], -1)
        mask = torch.cat([chosen[:, None].expand(-1, call.length, -1), seen & (near < total[:, None])[:, None]], -1)
        weights = attention.weights(logits.masked_fill(~mask[:, None, None], -torch.inf))
        y = attention.mixed(weights, torch.cat([taken(value, far_slots), taken(value, near_slots)], 2))

        given = weights[..., far.shape[1] :] * (local & real[..., None])[:, None, None]
        index = near_slots.expand(-1, mass.shape[1], -1)
        return y, mass.scatter_add(2, index, given.sum(3).flatten(1, 2).to(mass.dtype))

    def _far(
        self,
        state: CacheState,
        distant: Tensor,
        call: Call,
        order: Tensor,
        bounds: Tensor,
        blocks: Tensor,
        mass: Tensor,
        notes: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Places in time (B, n) of the first tokens and of the chosen blocks', and which of them there are."""
        count = bounds.shape[1] - 1
        first = torch.arange(self.init, device=blocks.device).expand(len(blocks), -1)
        if count == 0:
            return first, torch.zeros_like(first, dtype=torch.bool)
        known = notes.get("blocks")
        if known is None or known.shape[2] != count or bool((notes["complete"] != blocks).any()):
            every = torch.arange(count, device=blocks.device).expand(len(blocks), -1)
            members = _members(bounds, every.masked_fill(every >= blocks[:, None], -1))
            notes["blocks"] = known = self._known(state, call, order, *members, mass)
            notes["complete"] = blocks
        query = self.probe(distant, call.real)
        score = torch.einsum("bhd,bhnd->bn", query.to(known.dtype), known)
        score = score.masked_fill(torch.arange(count, device=score.device) >= blocks[:, None], -torch.inf)
        far, there = (one.flatten(1) for one in _members(bounds, self.choose(score, notes)))
        return torch.cat([first, far], 1), torch.cat([(blocks > 0)[:, None].expand_as(first), there], 1)

    def probe(self, q: Tensor, real: Tensor) -> Tensor:
        """What a chunk of queries (B, H, T, d) asks with, (B, H, d); ``real`` (B, T) is False at padding."""
        return (q * real[:, None, :, None]).sum(2) / real.sum(1).clamp(min=1)[:, None, None]

    def _known(
        self, state: CacheState, call: Call, order: Tensor, places: Tensor, there: Tensor, mass: Tensor
    ) -> Tensor:
        """What stands for each block, (B, H, count, d), whose tokens (B, count, n) are at places, where ``there``."""
        inside = order.gather(1, places.flatten(1))  # (B, count n)
        slots = inside[:, None].expand(-1, mass.shape[1], -1)
        given = mass.gather(2, slots).unflatten(2, there.shape[1:]).masked_fill(~there[:, None], -torch.inf)
        best = given.topk(min(self.representatives, there.shape[2]), -1)  # (B, H, count, r)
        taking = best.indices + there.shape[2] * torch.arange(there.shape[1], device=there.device)[:, None]
        key, _ = self._raw(state, call.attention, inside[:, None])
        key = key.repeat_interleave(mass.shape[1] // key.shape[1], 1)
        found, real = taken(key, taking.flatten(2)).unflatten(2, taking.shape[2:]), best.values > -torch.inf
        return (found * real[..., None]).sum(3) / real.sum(3).clamp(min=1)[..., None]

    @staticmethod
    def _raw(state: CacheState, attention, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of slots (B, 1, n), turned back to position 0, and their values."""
        position = taken(state.position, slots)
        return attention.turned(taken(state.key, slots), -position.masked_fill(position == EMPTY, 0)), taken(
            state.value, slots
        )


def _members(bounds: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Places (B, k, n) of the tokens of blocks (B, k), and which there are: a block may be shorter, or -1 for none."""
    start = bounds.gather(1, blocks.clamp(min=0))
    size = (bounds.gather(1, blocks.clamp(min=0) + 1) - start).masked_fill(blocks < 0, 0)[..., None]
    within = torch.arange(int(size.max()), device=bounds.device)
    return (start[..., None] + within).where(within < size, 0), within < size
