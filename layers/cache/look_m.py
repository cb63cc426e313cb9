"""Text stays, and what is dropped of images is merged into what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState


def pivot(own: Tensor, others: Tensor, count: Tensor) -> Tensor:
    """The mean of what stays and of its means with each of those that go to it, of which there is the sum."""
    return (own + (others + count * own) / 2) / (1 + count)


def average(own: Tensor, others: Tensor, count: Tensor) -> Tensor:
    """The mean of what stays and of all that go to it, of which there is the sum."""
    return (own + others) / (1 + count)


MERGES = {"pivot": pivot, "average": average}


@dataclass(frozen=True)
class LookM(Policy):
    """Of a prompt with images keeps all text, the ``recent`` tokens, and the ``heavy`` ones that were attended to most.

    Text comes before images in that order, so images stay where there is less text than ``heavy``. What is evicted is
    not lost: it is merged into the kept token whose key is nearest to its key, by cosine, and so are the values. A
    prompt without an image is left alone, and so is one that fits. Keys are averaged as they are turned. What is
    generated is added.

    Args:
        images: ids of the tokens that stand for parts of images.
        heavy: tokens that stay by the sum of the attention given to them, before the recent ones.
        recent: newest tokens that stay.
        merge: "pivot", the mean of what stays and its means with each that goes to it; "average", of all; or "none".

    Raises:
        ValueError: for another merge, or a budget out of range.

    Paper: Wan et al., "LOOK-M", arXiv 2406.18139.
    """

    per_head: ClassVar[bool] = True
    paper: ClassVar[str] = "2406.18139"

    images: tuple[int, ...] = ()
    heavy: Budget = 0.1
    recent: Budget = 0.1
    merge: str = "pivot"

    def __post_init__(self):
        require_budget(heavy=self.heavy, recent=self.recent)
        if self.merge not in (*MERGES, "none"):
            raise ValueError(f"merge must be one of {[*MERGES, 'none']}, got {self.merge!r}")

    def start(self, state: CacheState) -> None:
        """The attention that each slot was given, and the id of its token."""
        state.add("mass", state.heads)
        state.add("token", state.heads, dtype=torch.int64)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Evict of the images, and merge."""
        mass = state.held("mass") + state.mass(call).sum(2)
        state.renew("mass", mass)
        images = torch.tensor(self.images, device=mass.device, dtype=torch.int64)
        image = torch.isin(state.held("token"), images) & state.real  # (B, G, filled)
        heavy, recent = (torch.as_tensor(state.slots(one), device=mass.device) for one in (self.heavy, self.recent))
        due = (state.real.sum(-1).amax(1) > heavy + recent) & image.any(2).any(1)
        if not bool(due.any()):
            return
        newest = state.newest(recent.expand(len(mass)))
        order = torch.where(image, mass.double() - 1e6, mass.double()).masked_fill(newest | ~state.real, -torch.inf)
        rank = order.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        stays = newest | ~image | (rank < heavy.view(-1, 1, 1)) | ~due[:, None, None]
        if self.merge != "none":
            self._merge(state, stays & state.real)
        state.keep(stays)

    def _merge(self, state: CacheState, stays: Tensor) -> None:
        """Into the tokens that stay (B, G, filled) go the others, each to the nearest."""
        key, value, merged = state.key, state.value, MERGES[self.merge]
        goes = ~stays & state.real
        unit = F.normalize(key, dim=-1)
        near = (unit @ unit.mT).masked_fill(~stays[:, :, None], -torch.inf).argmax(-1)  # (B, G, filled)
        count = torch.zeros_like(near, dtype=key.dtype).scatter_add(2, near, goes.to(key.dtype))[..., None]
        for name, vectors in (("key", key), ("value", value)):
            index = near[..., None].expand_as(vectors)
            others = torch.zeros_like(vectors).scatter_add(2, index, vectors * goes[..., None])
            state.renew(name, torch.where(count > 0, merged(vectors, others, count), vectors))
