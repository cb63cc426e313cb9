"""Collaborative decoding of scales: a large model says the coarse maps, a small one the fine ones.

Most tokens are those of the finest maps, which a small model says nearly as well: the large one reads c_N tokens of
all, and its keys go before the small one's come, which reads the coarse maps in one pass.

Paper: Chen et al., "Collaborative Decoding Makes Visual Auto-Regressive Modeling Efficient", arXiv
2411.17787 (CoDe).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from zoo.generative.next_scale import NextScale, drawing


@dataclasses.dataclass(frozen=True)
class Collaboration:
    """Two next-scale models of the same tokens.

    Attributes:
        drafter: the large model, of the coarse maps.
        refiner: the small one, of the rest.
        scales: how many maps the drafter says.

    Raises:
        ValueError: for models of other tokens, or a number of scales that leaves one of them nothing.
    """

    drafter: NextScale
    refiner: NextScale
    scales: int

    def __post_init__(self):
        tokens = [(m.config.scales, m.config.groups, m.config.bits, m.config.scale_decay) for m in self._models]
        if tokens[0] != tokens[1]:
            raise ValueError(f"drafter and refiner must be of the same tokens, got {tokens[0]} and {tokens[1]}")
        count = len(self.drafter.config.scales)
        if not 0 < self.scales < count:
            raise ValueError(f"scales must be from 1 to {count - 1}: both models say some, got {self.scales}")

    @torch.no_grad()
    def sample(
        self,
        batch_size: int = 1,
        *,
        classes: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        guidance: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw tokens (batch_size, groups, tokens) int64, in eval mode; arguments as of ``NextScale.sample``."""
        choose, training = drawing(temperature, top_k, generator), [m.training for m in self._models]
        try:
            for model in self._models:
                model.eval()
            coarse = self.drafter.decode(batch_size, choose, classes=classes, guidance=guidance, stop=self.scales)
            return self.refiner.decode(batch_size, choose, classes=classes, guidance=guidance, given=coarse)
        finally:
            for model, mode in zip(self._models, training, strict=True):
                model.train(mode)

    @property
    def drafted(self) -> int:
        """Tokens that the large model reads, of ``config.image_shape[0]``."""
        return sum(self.drafter.config.sizes[: self.scales])

    @property
    def keys(self) -> int:
        """Numbers of keys and values that are held at most, an image: the drafter's go before the refiner's come."""
        return max(keys_of(self.drafter, self.drafted), keys_of(self.refiner, sum(self.refiner.config.sizes)))

    @property
    def _models(self) -> tuple[NextScale, NextScale]:
        return self.drafter, self.refiner


def keys_of(model: NextScale, tokens: int) -> int:
    """Numbers of keys and values after so many tokens of an image."""
    return 2 * model.config.depth * model.config.dim * tokens
