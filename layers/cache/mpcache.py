"""What nobody in the prompt looked at goes; of the rest, clusters are chosen by sums and products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.call import Call
from zoo.layers.cache.in_time import InTime
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class MPCache(Policy):
    r"""Evicts of a prompt what no late query looks at, and attends while decoding to clusters found in two levels.

    A token stays if one of the last ``window`` share of the prompt's queries gives it at least ``threshold``, on the
    mean of the heads; their softmax is over the whole prompt, without the causal mask. A cluster's score

    .. math:: s = \alpha \sum_i q_i k^{max}_i + (1 - \alpha) \sum_i q_i k^{min}_i

    is linear, which private computation can afford, and no upper bound. Of large clusters, of two small ones each, the
    share ``first`` goes on, and of all small ones the share ``second`` is seen, with the first one and what is in no
    large cluster yet. Each key-value head chooses by the mean of its query heads.

    Args:
        threshold: of the attention that keeps a token; 0 for all tokens.
        window: share of the prompt's queries that look.
        cluster: tokens of a small cluster.
        alpha: weight of the largest keys.
        first, second: shares of large and of small clusters; 1 for all.

    Raises:
        ValueError: for shares outside (0, 1], or a negative threshold.

    Paper: Zeng et al., "MPCache", arXiv 2501.06807. Its layers also share their choice with the next one; here each
    makes its own.
    """

    channels: ClassVar[bool] = True
    paper: ClassVar[str] = "2501.06807"

    threshold: float = 1e-8
    window: float = 0.2
    cluster: int = 16
    alpha: float = 0.6
    first: float = 0.5
    second: float = 0.2

    def __post_init__(self):
        require_at_least(0, threshold=self.threshold)
        require_at_least(1, cluster=self.cluster)
        for name in ("window", "first", "second"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}, a share, must be in (0, 1], got {getattr(self, name)}")

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Evict what is not looked at."""
        if self.threshold == 0:
            return
        looking = (call.real.sum(1, keepdim=True) * self.window).ceil()
        looks = call.real & (call.real.flip(1).cumsum(1).flip(1) <= looking)  # (B, T)
        found = torch.zeros_like(state.real[:, 0])
        for start in range(int(looks.any(0).to(torch.uint8).argmax()), call.length, 256):
            part = call.part(start, start + 256)
            logits = part.attention.logits(part.q, state.key, state.value)
            logits = logits.masked_fill(~state.real[:, :, None, None], -torch.inf)
            weights = part.attention.weights(logits).mean((1, 2)) * looks[:, start : start + 256, None]
            found = found | (weights.amax(1) >= self.threshold)
        state.keep(found[:, None] | state.newest(1))
        for name in ("low", "high"):  # of clusters that are others now
            state.notes.pop(name, None)

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """A step to the chosen clusters."""
        size = self.cluster
        if call.length > 1 or state.filled < 2 * size or self.first == self.second == 1:
            return state.attend_all(call)
        tokens = InTime(state, call)
        low, high = (
            tokens.blocks(name, size, 0, reduce)
            for name, reduce in (("low", lambda keys: keys.amin(3)), ("high", lambda keys: keys.amax(3)))
        )
        count, large = low.shape[2] // 2, (tokens.total // (2 * size))[:, None, None]  # large clusters, (B, 1, 1) full
        q = call.q.unflatten(1, (low.shape[1], -1)).mean(2)  # (B, G, 1, d)
        low, high = (one[:, :, : 2 * count] for one in (low, high))
        coarse = self.score(q, low.unflatten(2, (-1, 2)).amin(3), high.unflatten(2, (-1, 2)).amax(3))
        seen = self.best(coarse, large, self.first)
        seen = seen.index_fill(2, torch.tensor(0, device=q.device), True).repeat_interleave(2, 2)
        small = self.score(q, low, high).masked_fill(~seen, -torch.inf)
        seen = (self.best(small, 2 * large, self.second) & seen).index_fill(2, torch.tensor(0, device=q.device), True)
        chosen = F.pad(seen.repeat_interleave(size, 2), (0, state.filled - 2 * count * size), value=False)
        place = torch.arange(state.filled, device=q.device)
        chosen = (chosen | (place >= 2 * size * large)) & (place < tokens.total[:, None, None])
        places = (~chosen).to(torch.uint8).argsort(dim=-1, stable=True)[..., : int(chosen.sum(-1).max())]
        return state.attend_to(call, tokens.slots(places), chosen.gather(2, places))

    def score(self, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Of clusters with keys between low and high (B, G, n, d), for q (B, G, 1, d): (B, G, n)."""
        return (q @ (self.alpha * high + (1 - self.alpha) * low).mT)[:, :, 0]

    @staticmethod
    def best(score: Tensor, count: Tensor, share: float) -> Tensor:
        """Where a score (B, G, n) is among the best, as many as the share of the ``count`` (B, 1, 1) that there are."""
        there = torch.arange(score.shape[2], device=score.device) < count
        rank = score.masked_fill(~there, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return (rank < (count * share).floor()) & there
