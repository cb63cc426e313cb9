"""Heads that retrieve, and heads that stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.dense import Dense
from zoo.layers.cache.heads import HeadsState
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState, visible
from zoo.layers.cache.streaming_llm import StreamingLLM
from zoo.layers.options import require_at_least
from zoo.layers.state import State

CHUNK = 256  # queries of a prompt that streaming heads read at a time


@dataclass(frozen=True)
class StreamingHeads(StreamingLLM):
    """Every token sees the first and the newest ones alone, in a prompt too; all stay at their positions."""

    renumber: bool = False

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """To the first tokens, and to ``recent`` positions up to its own."""
        recent = torch.as_tensor(state.slots(self.recent), device=call.q.device).view(-1, 1, 1, 1)
        if state.filled <= self.sink + int(recent.min()):
            return state.attend_all(call)
        if state.seen == state.filled == call.length and state.whole and recent.numel() == 1:
            return self.attend_prompt(state, call, int(recent))
        position, query = state.position, call.positions[:, None, :, None]
        near = (position[:, :, None] < self.sink) | (query - position[:, :, None] < recent) | (query == EMPTY)
        return call.attention.attend(call.q, state.key, state.value, visible(call, position) & near)

    def attend_prompt(self, state: CacheState, call: Call, recent: int) -> Tensor:
        """The first call, whose slots are in order: ``CHUNK`` queries at a time read the few keys that they see."""
        key, value, place, found = state.key, state.value, call.position, []
        for start in range(0, call.length, CHUNK):
            part = call.part(start, start + CHUNK)
            first = max(0, start + 1 - recent)
            held = torch.cat([place[: min(self.sink, first)], place[first : start + part.length]])
            seen = (held <= part.position[:, None]) & ((held < self.sink) | (part.position[:, None] - held < recent))
            found.append(call.attention.attend(part.q, key[:, :, held], value[:, :, held], seen))
        return torch.cat(found, 2)


@dataclass(frozen=True)
class DuoAttention(Policy):
    """Retrieval heads keep everything; streaming heads keep, and see, the first and the newest tokens alone.

    Which is which is said by gates, one a key-value head, that ``zoo.cache.learn_gates`` finds: the heads with the
    largest gates of the whole model retrieve.

    Args:
        gates: of each layer that the policy governs, those of its key-value heads; without them those that
            ``zoo.keep_heads`` gave the model, or else every second head of a layer, from the first, retrieves, which
            stands in for nothing learnt.
        sparsity: share of the heads that stream.
        sink: first tokens that streaming heads keep.
        recent: newest tokens that they keep, the present one included; as memory, of these heads.

    Raises:
        ValueError: for a sparsity outside [0, 1], sinks below 0, or recent tokens out of range.

    Paper: Xiao et al., "DuoAttention", arXiv 2410.10819.
    """

    channels: ClassVar[bool] = True
    learns: ClassVar[str] = "gates"
    paper: ClassVar[str] = "2410.10819"

    gates: tuple[tuple[float, ...], ...] | None = None
    sparsity: float = 0.5
    sink: int = 64
    recent: Budget = 256

    def __post_init__(self):
        require_at_least(0, sink=self.sink)
        require_budget(recent=self.recent)
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"sparsity, the share of heads that stream, must be in [0, 1], got {self.sparsity}")

    def build(self, key: Tensor, value: Tensor, **place: Any) -> State:
        """Heads of both kinds."""
        kinds = {True: Dense(store=self.store), False: StreamingHeads(self.sink, self.recent, store=self.store)}
        retrieves = self.roles(place["order"], place["layers"], key.shape[1])
        return HeadsState.of_roles([kinds[one] for one in retrieves], key, value, **place)

    def roles(self, order: int, layers: int, heads: int) -> list[bool]:
        """Whether each head of a layer retrieves.

        Raises:
            ValueError: for gates of another number of layers or heads.
        """
        gates = self.gates
        if gates is None:
            return [head % 2 == 0 or self.sparsity == 0 for head in range(heads)]
        if len(gates) != layers or len(gates[order]) != heads:
            raise ValueError(
                f"gates must have a row a layer and a number a key-value head: {layers} layers, {heads} heads here; "
                f"got {len(gates)} rows, {len(gates[min(order, len(gates) - 1)])} numbers"
            )
        every = torch.tensor([gate for row in gates for gate in row])
        streaming = every.argsort(stable=True)[: round(self.sparsity * len(every))].tolist()
        first = sum(len(row) for row in gates[:order])
        return [first + head not in streaming for head in range(heads)]
