"""Adapters of models with zeros, and one that makes them: PERP and PST."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import nn

from zoo.adapt.method import Adapter
from zoo.layers.adapt.sparse import MaskedLoRA, StructuredScores, mask_of
from zoo.layers.linear import is_plain
from zoo.layers.options import require_at_least
from zoo.layers.sparse import Pattern


@dataclasses.dataclass(frozen=True, kw_only=True)
class PERP(Adapter, kind="perp"):
    """Of a pruned model (``zoo.mask_weights(model, "pruned")``) biases, norms and, beneath the masks of linear layers,
    products of low rank learn; no zero is lost, and merging is exact. See ``MaskedLoRA``.

    For the head's biases and those of layers without a mask, too; the head itself by ``also=["head.*"]``, as the
    authors have it.

    Paper: Zimmer et al., "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs", arXiv 2312.15230; there
    rank 16 and alpha 32.
    """

    adds = ("A", "B")
    inner = "base_layer"

    rank: int = 16
    """Of the products; 0 for biases and norms alone."""
    alpha: float = 32.0
    """The product is times alpha / rank."""

    def fits(self, module: nn.Module) -> bool:
        """Linear layers with a mask."""
        return mask_of(module) is not None

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The masked layers, each with a product."""
        require_at_least(0, rank=self.rank)
        if not self.rank:
            return {}
        if not any(map(self.fits, model.modules())):
            raise ValueError(
                'perp takes a model with masked linear layers: zoo.mask_weights(model, "pruned") first, or --sparsity '
                "pruned beside --adapter perp"
            )
        return {name: MaskedLoRA(layer, self.rank, self.alpha) for name, layer in self.chosen(model).items()}

    def own(self, model: nn.Module) -> Iterator[str]:
        """Products, biases and all of norms, and what else learns."""
        state = model.state_dict()
        found = [name for name in state if name.rpartition(".")[2].endswith("bias")]
        for place, module in model.named_modules():
            if "Norm" in type(module).__name__:
                found += [f"{place}.{name}" for name in module.state_dict()]
        yield from dict.fromkeys([*super().own(model), *found])

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        """The masked layer with the product in its numbers."""
        return module.plain()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PST(Adapter, kind="pst"):
    """Changes of low rank, and scores of low rank by which numbers go, a growing share of them, while all weights are
    frozen; in the plain model are zeros. See ``StructuredScores``.

    Paper: Li et al., "Parameter-Efficient Sparsity for Large Language Models Fine-Tuning", arXiv 2205.11005; there the
    ranks are 8 and the factors 1, over a whole fine-tuning.
    """

    adds = ("U", "V", "A", "B", "R", "C", "mask", "done")

    ratio: float = 0.9
    """Share of the numbers that go in the end, in [0, 1)."""
    steps: int = 1000
    """Optimiser steps over which it grows, the first tenth and the last three tenths flat."""
    rank: int = 8
    """Of the changes."""
    score_rank: int = 8
    """Of the scores."""
    beta: float = 1.0
    """Factor of the changes."""
    alpha: float = 1.0
    """Factor of the scores that learn."""

    def fits(self, module: nn.Module) -> bool:
        """Plain linear layers."""
        return is_plain(module)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers whose masks learn."""
        require_at_least(1, rank=self.rank, score_rank=self.score_rank, steps=self.steps)
        Pattern(sparsity=self.ratio)
        options = (self.rank, self.score_rank, self.ratio, self.steps, self.beta, self.alpha)
        return {name: StructuredScores(layer, *options) for name, layer in self.chosen(model).items()}

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        """The layer of the masked matrix."""
        return module.plain()
