"""Events that begin where the text surprises, remembered with their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.call import Call
from zoo.layers.cache.in_time import InTime
from zoo.layers.cache.infllm import InfLLM
from zoo.layers.cache.state import CacheState
from zoo.layers.cache.surprise import conductance, modularity, surprising
from zoo.layers.options import require_at_least

CRITERIA = {"modularity": modularity, "conductance": lambda similar: -conductance(similar)}


@dataclass(frozen=True)
class EMLLM(InfLLM):
    r"""As ``InfLLM``, but blocks are events, which begin where the model is surprised, and bring their neighbours.

    .. math:: -\log p(x_t) > \mu + \gamma \sigma

    with mean and deviation of the ``memory`` tokens before t. An event has ``shortest`` to ``block`` tokens. With
    ``refine`` its end goes to the place, among those between the shortest event and the surprise, where the graph of
    the similarities :math:`k_i \cdot k_j` (keys as at position 0, a mean over heads) is cut best in two: within the
    event, and half as much on both sides of it.

    Retrieval has two stages: the ``top_k`` events that the queries ask for, and a queue of ``contiguous`` events, in
    which the neighbours of those found, up to ``reach`` away, take the places of the oldest ones.

    What surprises is known once the model has read a call to its end, and then an event may begin there: a prompt is
    given in chunks (``prefill_chunk``), as it attends to all of itself otherwise. A layer on its own is not told; nor
    one that some tokens do not pass, or the first token of a call after a part of a draft was forgotten: nothing
    surprises there, and events end at ``block`` tokens.

    Args:
        init, local, block, top_k, representatives, chunk: of ``InfLLM``; ``block`` is the longest event.
        gamma: deviations above the mean that surprise.
        memory: tokens that mean and deviation are of.
        shortest: tokens of the shortest event.
        refine: "modularity", "conductance", or None to leave ends where the surprises are.
        contiguous: events in the queue, 0 for none.
        reach: neighbours on each side that join it.

    Raises:
        ValueError: for numbers below 1 (of the queue 0), events longest before they are shortest, or an unknown
            criterion; and see ``InfLLM``.

    Paper: Fountas et al., "Human-inspired Episodic Memory for Infinite Context LLMs" (EM-LLM), arXiv 2407.09450.
    """

    paper: ClassVar[str] = "2407.09450"

    gamma: float = 1.0
    memory: int = 4096
    shortest: int = 8
    refine: Literal["modularity", "conductance"] | None = "modularity"
    contiguous: int = 5
    reach: int = 1

    def __post_init__(self):
        super().__post_init__()
        require_at_least(1, memory=self.memory, shortest=self.shortest, reach=self.reach)
        require_at_least(0, contiguous=self.contiguous)
        if self.shortest > self.block:
            raise ValueError(
                f"the shortest event must not exceed the longest: got shortest {self.shortest}, block {self.block}"
            )
        if self.refine is not None and self.refine not in CRITERIA:
            raise ValueError(f"refine must be one of {', '.join(CRITERIA)}, or None, got {self.refine!r}")

    def start(self, state: CacheState) -> None:
        """What the model makes known of each token."""
        state.add("surprise", 1)

    def bounds(self, before: Tensor, notes: dict[str, Tensor]) -> Tensor:
        """See ``InfLLM``."""
        return notes["bounds"]

    def segment(self, state: CacheState, call: Call, tokens: InTime, notes: dict[str, Tensor]) -> None:
        """The events of what was read before the call, as far as they are known to have ended."""
        rows, at = tokens.before.tolist(), notes.get("at", torch.zeros_like(tokens.before)).tolist()
        past = notes["bounds"].tolist() if "bounds" in notes else [[self.init]] * len(rows)
        bounds = [[place for place in row if place != EMPTY] for row in past]
        for row, (known, count) in enumerate(zip(bounds, rows, strict=True)):
            if count - known[-1] <= self.shortest:
                continue
            first = max(0, known[-1] - self.memory)
            slots = tokens.order[row : row + 1, first:count]
            nats = state.held("surprise")[row, 0].gather(0, slots[0])
            new = surprising(nats, self.gamma, self.memory).nonzero()[:, 0] + first
            at[row] = self._extend(known, at[row], new.tolist(), count, _Similar(state, call, row, tokens.order))
        width = max(map(len, bounds))
        filled = [row + [EMPTY] * (width - len(row)) for row in bounds]
        notes["bounds"] = torch.tensor(filled, device=tokens.order.device)
        notes["at"] = torch.tensor(at, device=tokens.order.device)

    def _extend(self, bounds: list[int], at: int, surprises: list[int], count: int, similar: _Similar) -> int:
        """Add the ends of events within ``count`` places; surprises up to ``at`` have ended one, and no other."""
        while True:
            start = bounds[-1]
            ends = [place for place in surprises if place > at and start + self.shortest <= place < start + self.block]
            if not ends and start + self.block > count:
                return at
            end = ends[0] if ends else start + self.block
            if ends and self.refine is not None:
                half = (end - start) // 2
                if end + half > count:
                    return at
                low = max(0, start - half)
                places = slice(start + self.shortest - low - 1, end - low)  # a cut c is number c - 1
                best = CRITERIA[self.refine](similar.of(low, end + half))[places].argmax()
                bounds.append(start + self.shortest + int(best))
            else:
                bounds.append(end)
            at = max(at, end) if ends else at

    def choose(self, score: Tensor, notes: dict[str, Tensor]) -> Tensor:
        """The events asked for, and those of the queue."""
        best = super().choose(score, notes)
        if not self.contiguous:
            return best
        queues = notes["queue"].tolist() if "queue" in notes else [[]] * len(best)
        there, found = (score > -torch.inf).sum(1).tolist(), []
        for row, (asked, queue) in enumerate(zip(best.tolist(), queues, strict=True)):
            asked = [event for event in asked if event >= 0]
            near = [event + step for event in reversed(asked) for by in range(self.reach, 0, -1) for step in (-by, by)]
            near = [event for event in near if 0 <= event < there[row] and event not in asked]
            order = [event for event in [*queue, *near] if event >= 0]
            newest = list(dict.fromkeys(reversed(order)))[: self.contiguous]  # each once, where it joined last
            found.append([-1] * (self.contiguous - len(newest)) + newest[::-1])
        notes["queue"] = queue = torch.tensor(found, device=best.device)
        again = (queue[:, :, None] == best[:, None]).any(2)
        return torch.cat([best, queue.masked_fill(again, -1)], 1)


@dataclass
class _Similar:
    """Similarities of the tokens of a row."""

    state: CacheState
    call: Call
    row: int
    order: Tensor

    def of(self, start: int, stop: int) -> Tensor:
        """Of the places from ``start`` up to ``stop``, (n, n)."""
        slots = self.order[self.row, start:stop]
        key = self.state.key[self.row : self.row + 1, :, slots]
        position = self.state.position[self.row : self.row + 1, :, slots]
        raw = self.call.attention.turned(key, -position)[0].double()
        return (raw @ raw.mT).mean(0)
