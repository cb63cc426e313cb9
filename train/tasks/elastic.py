"""A transformer whose parts learn with it, so that they are models by themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.options import require_at_least
from zoo.subnetworks import Subnetwork, run, swiglus
from zoo.train.data.rng import derive_seed
from zoo.train.optim import unwrapped
from zoo.train.tasks.language import Batch, LanguageModeling


class Space:
    """The sub-networks of a model of ``depth`` blocks: which are kept, and a width for each.

    A genome has a gene a block, whether it is kept, and another, which of the widths it has. Where fewer than ``least``
    are kept, the first ones are as well; the widths of blocks that are not kept say nothing.

    Args:
        depth: blocks.
        widths: hidden widths that a feed-forward layer may have, ascending.
        least: blocks that are kept at least.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(self, depth: int, widths: Sequence[int], least: int = 1):
        require_at_least(1, depth=depth, blocks=least, width=min(widths, default=0))
        if least > depth or list(widths) != sorted(set(widths)):
            raise ValueError(f"widths must rise and least be at most depth, got {list(widths)}, {least} and {depth}")
        self.depth, self.widths, self.least = depth, tuple(widths), least

    @property
    def sizes(self) -> list[int]:
        """Values of each gene."""
        return [2] * self.depth + [len(self.widths)] * self.depth

    @property
    def whole(self) -> tuple[int, ...]:
        """The genome of all blocks at the largest width."""
        return (1,) * self.depth + (len(self.widths) - 1,) * self.depth

    def part(self, genome: Sequence[int]) -> Subnetwork:
        """What a genome stands for."""
        kept, widths = list(genome[: self.depth]), genome[self.depth :]
        for index in range(self.depth):
            kept[index] = 1 if sum(kept) < self.least else kept[index]
        blocks = [index for index, gene in enumerate(kept) if gene]
        return Subnetwork(blocks=tuple(blocks), widths=tuple(self.widths[widths[index]] for index in blocks))

    def drawn(self, seed: int) -> Subnetwork:
        """One of them, every genome equally likely."""
        source = random.Random(seed)
        return self.part([int(source.random() * size) for size in self.sizes])


class ElasticLanguageModeling(LanguageModeling):
    """Language modelling by a transformer and by parts of it: a step's loss is the mean of the whole's and of those of
    some sub-networks, drawn anew, which use the same parameters (see `zoo.subnetworks`).

    Args:
        model: whose blocks have SwiGLUs; see `LanguageModeling`, which also has the other arguments.
        widths: of the feed-forward layers in a sub-network, ascending.
        least: blocks of a sub-network at least.
        parts: sub-networks a step.
        draw_seed: of the sub-networks.

    Raises:
        ValueError: for numbers out of range, or a model without sub-networks.

    Paper: Sarah et al., "LLaMA-NAS", arXiv 2405.18377. How the authors mix sub-networks and the whole in a step, and
    whether the whole teaches them, is not known to us.
    """

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        widths: tuple[int, ...],
        least: int = 1,
        parts: int = 1,
        draw_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        require_at_least(1, parts=parts)
        self.widths, self.least, self.parts, self.draw_seed = tuple(widths), least, parts, draw_seed

    def configure_model(self) -> None:
        super().configure_model()
        model: Any = unwrapped(self.trained)
        self.space = Space(len(swiglus(model)), self.widths, self.least)
        self.space.part(self.space.whole).layers(model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        tokens, labels = batch
        whole, losses = self.trained(tokens, labels=labels), []
        for number in range(self.parts):
            seed = derive_seed(self.draw_seed, self.global_step, batch_idx, number)
            losses.append(run(unwrapped(self.trained), self.space.drawn(seed), tokens, labels=labels))
        return self.log_training(torch.stack([whole, *losses]).mean(), whole=whole)
