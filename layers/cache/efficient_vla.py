"""Of an image, deep layers read what the text looks at, and what is unlike that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.cache.budget import Budget, require_budget
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.options import require_at_least


@dataclass(frozen=True)
class EfficientVLA(Policy):
    r"""One early layer chooses ``budget`` tokens of a prompt's images; all later ones are given these and the text.

    .. math:: r_j = \mathrm{mean}_{h,\, t \in \mathrm{text}} \; a^{(h)}_{t j}

    says how much the text attends to a token of an image. The ``key`` most relevant are chosen first, then a part
    ``share`` of the others by relevance, and what is left to choose one after another, each the furthest by the cosine
    of its hidden state from the nearest that is chosen. Tokens keep their positions; those that end have keys and
    values in the early layers alone. Text always goes on, and so does a prompt whose images fit.

    Args:
        images: ids of the tokens that stand for parts of images.
        budget: tokens of images that go on.
        key: those that are chosen first.
        share: of the others, by relevance. The paper's value and layer are not known to us: they are options.
        layer: number of the attention layer that chooses.

    Raises:
        ValueError: for a share outside [0, 1], or a budget out of range.

    Paper: Yang et al., "EfficientVLA", arXiv 2506.10100, section on visual tokens.
    """

    paper: ClassVar[str] = "2506.10100"

    images: tuple[int, ...] = ()
    budget: Budget = 56
    key: int = 4
    share: float = 0.5
    layer: int = 1

    def __post_init__(self):
        require_budget(budget=self.budget)
        require_at_least(1, key=self.key)
        require_at_least(0, layer=self.layer)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share of the tokens that relevance chooses must be in [0, 1], got {self.share}")

    def start(self, state: CacheState) -> None:
        """The id of each token."""
        state.add("token", 1, dtype=torch.int64)

    def after_prefill(self, state: CacheState, call: Call) -> None:
        """Relevance of the call's tokens, in the layer that chooses: inf for text, padding too."""
        if state.order != min(self.layer, state.layers - 1):
            return
        tokens = state.held("token")[:, 0, -call.length :]
        image = torch.isin(tokens, torch.tensor(self.images, device=tokens.device, dtype=torch.int64)) & call.real
        if int(image.sum(1).max()) <= int(torch.as_tensor(state.slots(self.budget)).max()):
            return
        weights = state.weights(call)[..., -call.length :]  # (B, G, H / G, T, T)
        text = (~image & call.real)[:, None, None, :, None]
        queries = weights.shape[1] * weights.shape[2] * text.sum((1, 2, 3)).clamp(min=1)  # in all heads
        relevance = (weights * text).sum((1, 2, 3)) / queries
        state.notes["relevance"] = relevance.masked_fill(~image, torch.inf)

    def after_layer(self, state: CacheState, hidden: Tensor, later: Sequence[CacheState]) -> Tensor | None:
        """The text and the chosen tokens."""
        relevance = state.notes.pop("relevance", None)
        if relevance is None:
            return None
        image = ~relevance.isinf()
        budget = int(torch.as_tensor(state.slots(self.budget)).max())
        rank = self.ranked(relevance.masked_fill(~image, -1), hidden, image, budget)
        count = int((~image).sum(1).max()) + budget  # rows with less text have room for more of their images
        order = torch.where(image, rank, -1)
        return order.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values

    def ranked(self, relevance: Tensor, hidden: Tensor, image: Tensor, budget: int) -> Tensor:
        """(B, T), which place each token of an image has in the order of choosing; others come last."""
        unit, first = F.normalize(hidden.float(), dim=-1), min(self.key, budget)
        first += round(self.share * (budget - first))
        by = relevance.argsort(dim=1, descending=True, stable=True)
        rank = by.argsort(dim=1).double()
        chosen = (rank < first) & image
        rank = torch.where(chosen, rank, rank + hidden.shape[1])  # the others by relevance, behind all that are chosen
        similar = (unit @ unit.mT).masked_fill(~chosen[:, None], -torch.inf).amax(-1)  # to the nearest that is chosen
        for place in range(first, budget):
            left = image & ~chosen
            index = similar.masked_fill(~left, torch.inf).argmin(1, keepdim=True)
            there = left.gather(1, index)
            rank = rank.scatter(1, index, torch.where(there, place, rank.gather(1, index)))
            chosen = chosen.scatter(1, index, there | chosen.gather(1, index))
            nearer = (unit * unit.take_along_dim(index[..., None], 1)).sum(-1)
            similar = torch.maximum(similar, nearer.masked_fill(~there, -torch.inf))
        return rank
