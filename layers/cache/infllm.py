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
        y, state.scratch = self._run(state, call)
        return y

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Note the attention within the window."""
        state.renew("mass", self._run(state, call)[1] if state.scratch is None else state.scratch)

    after_step = after_prefill

    def _run(self, state: CacheState, call: Call) -> tuple[Tensor, Tensor]:
        """The outputs (B, H, T, d), and the sums of the attention within the window (B, H, filled)."""
        mass = state.held("mass")
        if state.filled <= self.local:
            return state.attend_all(call), mass + state.mass(call).flatten(1, 2)
        tokens, outputs = InTime(state, call), []
        for part, before in tokens.chunks(self.chunk):
            y, mass = self._chunk(state, part, tokens.order, before, mass)
            outputs.append(y)
        return tokens.joined(outputs), mass

    def _chunk(
        self, state: CacheState, call: Call, order: Tensor, before: Tensor, mass: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries that ask together attend; ``before`` (B,) tokens came earlier."""
        attention, real, end = call.attention, call.real, state.filled
        total = before + real.sum(1)
        blocks = ((before - self.local - self.init) // self.block).clamp(min=0)  # (B,), filled and out of the window
        start = torch.where(blocks > 0, self.init + blocks * self.block, 0)  # of what is in none of them
        query = before[:, None] + real.cumsum(1) - 1  # (B, T), places in time
        shift = (self.local - call.positions).masked_fill(~real, 0)[:, None]
        distant = attention.turned(call.q, shift)  # as at position ``local``, for keys that are turned back to 0

        near = start[:, None] + torch.arange(int((total - start).max()), device=start.device)
        far, chosen = self._far(state, distant, call, order, blocks, mass)
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
        self, state: CacheState, distant: Tensor, call: Call, order: Tensor, blocks: Tensor, mass: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Places in time (B, n) of the first tokens and of the chosen blocks', and which of them there are."""
        count = int(blocks.max())
        within = torch.arange(self.block, device=blocks.device)
        first = torch.arange(self.init, device=blocks.device).expand(len(blocks), -1)
        if count == 0:
            return first, torch.zeros_like(first, dtype=torch.bool)
        known = state.notes.get("blocks")
        if known is None or known.shape[2] != count or bool((state.notes["complete"] != blocks).any()):
            state.notes["blocks"] = known = self._known(state, call, order, count, mass)
            state.notes["complete"] = blocks
        query = self.probe(distant, call.real)
        score = torch.einsum("bhd,bhnd->bn", query.to(known.dtype), known)
        score = score.masked_fill(torch.arange(count, device=score.device) >= blocks[:, None], -torch.inf)
        chosen = score.topk(min(self.top_k, count), dim=1).indices  # (B, k)
        far = (self.init + chosen[..., None] * self.block + within).flatten(1)
        there = (chosen < blocks[:, None]).repeat_interleave(self.block, 1)
        return torch.cat([first, far], 1), torch.cat([(blocks > 0)[:, None].expand_as(first), there], 1)

    def probe(self, q: Tensor, real: Tensor) -> Tensor:
        """What a chunk of queries (B, H, T, d) asks with, (B, H, d); ``real`` (B, T) is False at padding."""
        return (q * real[:, None, :, None]).sum(2) / real.sum(1).clamp(min=1)[:, None, None]

    def _known(self, state: CacheState, call: Call, order: Tensor, count: int, mass: Tensor) -> Tensor:
        """What stands for each block, (B, H, count, d)."""
        inside = order[:, self.init : self.init + count * self.block]
        slots = inside[:, None].expand(-1, mass.shape[1], -1)
        best = mass.gather(2, slots).unflatten(2, (count, self.block)).topk(self.representatives, -1).indices
        best = (best + self.block * torch.arange(count, device=best.device)[:, None]).flatten(2)
        key, _ = self._raw(state, call.attention, inside[:, None])
        key = key.repeat_interleave(mass.shape[1] // key.shape[1], 1)
        return taken(key, best).unflatten(2, (count, -1)).mean(3)

    @staticmethod
    def _raw(state: CacheState, attention, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of slots (B, 1, n), turned back to position 0, and their values."""
        position = taken(state.position, slots)
        return attention.turned(taken(state.key, slots), -position.masked_fill(position == EMPTY, 0)), taken(
            state.value, slots
        )
