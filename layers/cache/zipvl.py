"""As many tokens as the attention asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.slots import taken
from zoo.layers.cache.state import CacheState, visible


@dataclass(frozen=True)
class ZipVL(Policy):
    r"""Of a prompt each layer computes and keeps its important tokens alone, as many as carry ``tau`` of the attention.

    .. math:: p = \min \{ n : \sum_{i \le n} A_{(i)} \ge \tau \sum_j A_j \}, \quad A_j = \sum_{t, h} a_{t, h, j}

    with A sorted. The p tokens with the largest mean attention of the queries that can see them are important, and the
    last one always. Attention is computed among them; the others have no update in this layer, and no key after it.
    What is generated is added.

    Args:
        tau: share of the attention that is to be kept, 1 for all tokens.
        probes: queries whose attention counts, spread evenly and with the last one; None for all.

    Raises:
        ValueError: for a tau outside (0, 1], or probes below 1.

    Paper: He et al., "ZipVL", arXiv 2410.08584.
    """

    paper: ClassVar[str] = "2410.08584"

    tau: float = 0.975
    probes: int | None = None

    def __post_init__(self):
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau, a share of the attention, must be in (0, 1], got {self.tau}")
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """A prompt among its important tokens, a step to everything held."""
        if call.length == 1 or self.tau == 1:
            return state.attend_all(call)
        important = self.important(state, call)  # (B, filled)
        own = important[:, -call.length :]
        places, there = chosen(own)
        slots, held = (one[:, None] for one in chosen(important))
        q = call.q.take_along_dim(places[:, None, :, None], 2)
        part = Call(q, call.positions.gather(1, places).masked_fill(~there, EMPTY), call.attention)
        key, value, position = (taken(tensor, slots) for tensor in (state.key, state.value, state.position))
        y = call.attention.attend(q, key, value, visible(part, position.masked_fill(~held, EMPTY)))
        y = y.masked_fill(~there[:, None, :, None], 0)
        empty = y.new_zeros(*y.shape[:2], call.length, y.shape[-1])
        return empty.scatter_add(2, places[:, None, :, None].expand_as(y), y)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Keep the important tokens."""
        if self.tau < 1:
            state.keep(self.important(state, call)[:, None])

    def important(self, state: CacheState, call: Call) -> Tensor:
        """(B, filled), True for important tokens, and for those held from before, which were."""
        step = 1 if self.probes is None else max(1, call.length // self.probes)
        places = torch.arange(call.length - 1, -1, -step, device=call.q.device).flip(0)
        probes = Call(call.q[:, :, places], call.positions[:, places], call.attention)
        mass = state.mass(probes).sum((1, 2))[:, -call.length :]  # (B, T)
        seen = (call.positions[:, None] <= probes.positions[..., None]) & probes.real[..., None]
        ranked = mass.sort(dim=1, descending=True).values.cumsum(1)
        count = (ranked < self.tau * ranked[:, -1:]).sum(1, keepdim=True) + 1
        mean = (mass / seen.sum(1).clamp(min=1)).masked_fill(~call.real, -1)
        mean[:, -1] = torch.inf
        rank = mean.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        before = torch.ones(len(mass), state.filled - call.length, dtype=torch.bool, device=mass.device)
        return torch.cat([before, (rank < count) & call.real], 1)


def chosen(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The places (B, n) where a mask (B, T) is True, in order, and which of them there are in a row with fewer."""
    width = int(mask.sum(1).max())
    places = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return places, mask.gather(1, places)
