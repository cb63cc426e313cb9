r"""Fewer keys and values between the scales of a next-scale model, where a layer at a scale needs few.

A layer that looks at the map it is making, or at few tokens of the coarser ones, is a *refiner* at that scale and keeps
little; one that looks everywhere is a *drafter* and keeps what the refiners save. Which is which says the attention
selectivity index of layer l at scale k, of the attention a of queries i on the current map :math:`C` and on the k'
history tokens :math:`T_i` that a query looks at most,

.. math:: \mathrm{ASI} = E_i \Big[ \sum_{j \in C} a_{ij} \Big] \cdot E_i \Big[ \sum_{j \in T_i} a_{ij} \Big]

standardised over the layers of a scale: the lowest pairs of layer and scale are the drafters. Kept are the tokens in
the middle of the patches of a grid over the map just made, the *window*, and those that the window looks at most, of
each head.

Paper: Li et al., "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression", arXiv
2505.19602. Scores are means of softmaxed attention, pooled by averages, as the paper has them; the released code pools
the largest of unscaled products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generative.adaptive import Past
from zoo.generative.next_scale import NextScale, NextScaleConfig


@dataclasses.dataclass(frozen=True)
class ScaleKV:
    """What each layer keeps after each scale: a cache of ``NextScale.sample``.

    Attributes:
        budgets: of each layer, tokens that are kept at most after each scale but the last; the same for all layers is
            SnapKV with a window that is spread over the map.
        window: patches a side of the grid whose middles are the window.
        pool: neighbouring tokens whose scores are averaged.

    Raises:
        ValueError: for a budget below the window, an even ``pool``, or sizes below 1.
    """

    budgets: tuple[tuple[int, ...], ...]
    window: int = 4
    pool: int = 5

    def __post_init__(self):
        if self.window < 1 or self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"window must be at least 1 and pool odd, got {self.window} and {self.pool}")
        least = min((budget for layer in self.budgets for budget in layer), default=1)
        if least < 1:
            raise ValueError(f"budgets must be at least 1 token, got {least}: give a larger share")

    @classmethod
    def uniform(cls, config: NextScaleConfig, share: float, *, window: int = 4, pool: int = 5) -> ScaleKV:
        """The same budget for all layers.

        Args:
            share: of the tokens of all scales but the last.

        Raises:
            ValueError: for a share that is not in (0, 1] or smaller than the window.
        """
        budget = tokens_of(config, share, window)
        after = [min(budget, history) for history in histories(config)]
        return cls((tuple(after),) * config.depth, window, pool)

    @classmethod
    def calibrated(
        cls,
        model: NextScale,
        tokens: Tensor,
        classes: Tensor | None,
        share: float,
        *,
        drafters: int | None = None,
        refiners: tuple[float, float] = (1.0, 0.3),
        top: int = 8,
        window: int = 4,
        pool: int = 5,
    ) -> ScaleKV:
        """Budgets by the selectivity that a few images show, of the same sum as those of ``uniform``.

        Args:
            tokens: (B, groups, tokens) of images; ten are enough, says the paper.
            classes: (B,) of them.
            share: as of ``uniform``.
            drafters: pairs of a layer and a scale; a fifth of all where None.
            refiners: budget of a refiner over the mean, at the second scale and the last, falling evenly between.
            top: k' of the index.

        Raises:
            ValueError: as of ``uniform``; for tokens of another shape, more drafters than pairs, or refiners that do
                not fall from at most 1.
        """
        config = model.config
        budget = tokens_of(config, share, window)
        if tokens is None or tokens.dim() != 3:
            found = None if tokens is None else tuple(tokens.shape)
            raise ValueError(f"calibration takes tokens (images, groups, tokens) of images, got {found}")
        count = config.depth * (len(config.sizes) - 1)
        drafters = max(1, count // 5) if drafters is None else drafters
        if not 0 <= drafters <= count or not 1 >= refiners[0] >= refiners[1] > 0:
            raise ValueError(
                f"drafters must be 0 to {count} and refiners fall from at most 1, got {drafters} and {refiners}"
            )
        index = selectivity(model, tokens, classes, top)  # (depth, scales but the first)
        spread = index.std(0, correction=0)
        scores = (index - index.mean(0)) / (spread + 1e-12)
        drafting = torch.zeros(count, dtype=torch.bool)
        drafting[scores.flatten().argsort(stable=True)[:drafters]] = True
        return cls(divided(config, drafting.view_as(scores), budget, refiners, window), window, pool)

    def pasts(self, model: NextScale) -> list[Past]:
        """Empty ones, one a block.

        Raises:
            ValueError: for a model of other layers or scales.
        """
        config, shape = model.config, {len(layer) for layer in self.budgets}
        if len(self.budgets) != config.depth or shape != {len(config.sizes) - 1}:
            raise ValueError(
                f"budgets must be of {config.depth} layers and {len(config.sizes) - 1} scales, got "
                f"{len(self.budgets)} and {sorted(shape)}"
            )
        return [Kept(budgets=layer, sides=config.scales, window=self.window, pool=self.pool) for layer in self.budgets]

    def numbers(self, config: NextScaleConfig) -> int:
        """Keys and values that are kept between two scales at most, an image, as numbers."""
        after = zip(*self.budgets, strict=True)
        return 2 * config.dim * max(
            sum(min(budget, held) for budget in layers)
            for layers, held in zip(after, histories(config), strict=True)
        )  # fmt: skip


@dataclasses.dataclass
class Kept(Past):
    """Keys and values of a budget after each scale, other ones of each head."""

    budgets: tuple[int, ...] = ()
    sides: tuple[int, ...] = ()
    window: int = 4
    pool: int = 5
    query: Tensor | None = None

    def look(self, query: Tensor) -> None:
        """As of ``Past``."""
        self.query = query

    def end(self, scale: int) -> None:
        """Let go of what exceeds the budget; after the last scale nothing reads them."""
        query, self.query = self.query, None
        if scale >= len(self.budgets) or self.key is None or self.value is None or query is None:
            return
        held, budget = self.key.shape[2], self.budgets[scale]
        if held <= budget:
            return
        side = self.sides[scale]
        watching = middles(side, self.window).to(query.device)
        law = attention(query[:, :, -side * side :][:, :, watching], self.key)
        scores = F.avg_pool1d(law.mean(2), self.pool, 1, self.pool // 2, count_include_pad=False)
        scores[:, :, held - side * side + watching] = torch.inf
        places = scores.topk(budget).indices.sort().values[..., None].expand(-1, -1, -1, self.key.shape[3])
        self.key, self.value = self.key.gather(2, places), self.value.gather(2, places)


@dataclasses.dataclass
class Probed(Past):
    """All keys and values, and the selectivity of each scale but the first."""

    sides: tuple[int, ...] = ()
    top: int = 8
    query: Tensor | None = None
    found: list[float] = dataclasses.field(default_factory=list)

    def look(self, query: Tensor) -> None:
        """As of ``Past``."""
        self.query = query

    def end(self, scale: int) -> None:
        """The index of this scale."""
        if scale == 0 or self.key is None or self.query is None:
            return
        current = self.sides[scale] ** 2
        law = attention(self.query[:, :, -current:], self.key)
        history = law[..., :-current]
        on_map = law[..., -current:].sum(-1).mean()
        self.found.append((on_map * history.topk(min(self.top, history.shape[-1])).values.sum(-1).mean()).item())


@torch.no_grad()
def selectivity(model: NextScale, tokens: Tensor, classes: Tensor | None = None, top: int = 8) -> Tensor:
    """The index of each layer at each scale but the first, (depth, scales - 1), over images and heads."""
    sizes = model.config.sizes
    pasts = [Probed(sides=model.config.scales, top=top) for _ in model.blocks]
    left = iter(tokens.split(sizes, 2))
    training = model.training
    model.eval()
    try:
        model.decode(len(tokens), lambda _: next(left), classes=classes, pasts=pasts)
    finally:
        model.train(training)
    return torch.tensor([past.found for past in pasts], dtype=torch.float64)


def divided(
    config: NextScaleConfig, drafting: Tensor, budget: int, refiners: Sequence[float], window: int
) -> tuple[tuple[int, ...], ...]:
    """What each layer keeps after each scale, ``budget`` tokens a layer on average and no more.

    Args:
        drafting: (depth, scales - 1) bool: the pairs that read much of what came before them.
    """
    columns, steps = [], max(1, drafting.shape[1] - 1)
    for place, (column, history) in enumerate(zip(drafting.T, histories(config), strict=True)):
        many, whole = int(column.sum()), min(budget, history)
        few = config.depth - many
        least = min(len(middles(config.scales[place], window)), whole)
        factor = refiners[0] + (refiners[1] - refiners[0]) * place / steps
        small = max(least, int(whole * factor)) if many else whole
        large = min(history, (whole * config.depth - few * small) // many) if many else whole
        small = min(history, (whole * config.depth - many * large) // few) if few else whole
        columns.append([large if drafts else small for drafts in column.tolist()])
    return tuple(zip(*columns, strict=True))


def histories(config: NextScaleConfig) -> list[int]:
    """Tokens that there are after each scale but the last."""
    return [sum(config.sizes[: scale + 1]) for scale in range(len(config.sizes) - 1)]


def tokens_of(config: NextScaleConfig, share: float, window: int) -> int:
    """A share of the tokens of all scales but the last."""
    most, least = histories(config)[-1], min(window, config.scales[-2]) ** 2
    budget = int(share * most + 1e-9)
    if not least <= budget <= most:
        raise ValueError(
            f"a share must keep at least the window of {least} tokens of {most} and at most all, got {share}"
        )
    return budget


def middles(side: int, window: int) -> Tensor:
    """Numbers of the tokens in the middle of the patches of a grid over a map; all of a smaller one."""
    count = min(side, window)
    lines = ((torch.arange(count) + 0.5) * side / count).long()
    return (lines[:, None] * side + lines).flatten()


def attention(query: Tensor, key: Tensor) -> Tensor:
    """Where queries (B, heads, T, head_dim) look among keys (B, heads, S, head_dim): (B, heads, T, S)."""
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
