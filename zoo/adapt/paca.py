"""PaCA: some columns of every matrix learn, in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zoo.adapt.method import Adapter
from zoo.layers.adapt import PartialLinear
from zoo.layers.linear import is_plain
from zoo.layers.options import require_at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaCA(Adapter, kind="paca"):
    """Of each linear layer the columns of ``rank`` inputs learn, drawn once: out times rank numbers, one product and no
    kept input but those.

    The authors divide the columns by alpha / rank and multiply them again, a factor of the learning rate (of Adam) that
    is left to the learning rate here.

    Paper: Woo et al., "PaCA: Partial Connection Adaptation for Efficient Fine-Tuning", arXiv 2503.01905.
    """

    adds = ("columns", "index")

    rank: int = 8
    """Columns of each layer that learn; all of them where it has no more inputs, as others have."""
    seed: int = 0
    """Of the draw."""

    def fits(self, module: nn.Module) -> bool:
        """Plain linear layers."""
        return is_plain(module)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers of which some columns learn."""
        require_at_least(1, rank=self.rank)
        layers = self.chosen(model)
        if self.rank > (most := max(layer.in_features for layer in layers.values())):
            raise ValueError(f"paca: rank must be at most {most}, the inputs of the widest layer, got {self.rank}")
        draw = torch.Generator().manual_seed(self.seed)
        made: dict[str, nn.Module] = {}
        for name, layer in layers.items():
            index = torch.randperm(layer.in_features, generator=draw, device="cpu")[: self.rank]
            made[name] = PartialLinear(layer, index.sort().values)
        return made

    @contextmanager
    def damped(self, module: Any, factor: float) -> Iterator[None]:
        """The columns on their way from what they were."""
        before = module.columns.data
        module.columns.data = torch.lerp(module.weight[:, module.index], before, factor)
        try:
            yield
        finally:
            module.columns.data = before

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        """The layer with these columns in its matrix."""
        return module.plain()
