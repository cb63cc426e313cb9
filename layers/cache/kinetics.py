"""Blocks of keys by their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zoo.layers.cache.call import Call
from zoo.layers.cache.in_time import InTime
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class Kinetics(Policy):
    r"""A step attends to the first tokens, the newest ones, and the ``top_k`` best blocks of the others.

    .. math:: s_b = \mathrm{mean}_{h, \, j \in b} \; q_h \cdot k_j / \sqrt d

    over the query heads h of a key-value head, each of which takes its own blocks. A prompt attends to everything, and
    nothing is evicted: decoding reads less memory, which is what it waits for.

    Args:
        sink: first tokens that are always seen.
        local: newest tokens that are always seen, the present one included; up to ``block`` more, of a block that is
            not full or not old.
        block: tokens a block.
        top_k: blocks that are seen.

    Raises:
        ValueError: for numbers below 1, or a sink below 0.

    Paper: Sadhukhan et al., "Kinetics: Rethinking Test-Time Scaling Laws", arXiv 2506.05333.
    """

    channels: ClassVar[bool] = True
    paper: ClassVar[str] = "2506.05333"

    sink: int = 4
    local: int = 64
    block: int = 16
    top_k: int = 60

    def __post_init__(self):
        require_at_least(0, sink=self.sink)
        require_at_least(1, local=self.local, block=self.block, top_k=self.top_k)

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """A step to what it chooses."""
        if call.length > 1 or state.filled <= self.sink + self.local + self.top_k * self.block:
            return state.attend_all(call)
        tokens = InTime(state, call)
        means = tokens.blocks("means", self.block, self.sink, lambda keys: keys.mean(3))  # (B, G, n, d)
        old = ((tokens.total - self.local - self.sink).clamp(min=0) // self.block)[:, None, None]  # (B, 1, 1) blocks
        logits = call.attention.logits(call.q, means, means).mean((2, 3))  # (B, G, n)
        block = torch.arange(means.shape[2], device=old.device)
        best = logits.masked_fill(block >= old, -torch.inf).topk(min(self.top_k, means.shape[2]), dim=-1).indices
        within = torch.arange(self.block, device=old.device)
        chosen = (self.sink + best[..., None] * self.block + within).flatten(2)
        chosen = chosen.masked_fill((best >= old).repeat_interleave(self.block, 2), -1)
        start = self.sink + old * self.block  # where what is in no block, or in a new one, begins
        newest = start + torch.arange(int((tokens.total[:, None, None] - start).max()), device=old.device)
        first = torch.arange(self.sink, device=old.device)
        shape = (len(old), means.shape[1], -1)
        places = torch.cat([first.expand(shape), chosen, newest.expand(shape)], 2)
        return state.attend_to(call, tokens.slots(places), (places >= 0) & (places < tokens.total[:, None, None]))
