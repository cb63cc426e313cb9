"""MobileTL: the last inverted residuals learn, and keep little to do so."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from zoo.adapt.method import Adapter
from zoo.layers.adapt.lean import LeanInvertedResidual
from zoo.layers.conv import InvertedResidual
from zoo.layers.options import require_at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileTL(Adapter, kind="mobiletl"):
    """In the last ``blocks`` inverted residuals all convolutions learn, of the two inner norms the shifts, and the last
    norm whole; activations keep a bit a number. For other classes let the head learn: ``also=["head.*"]``.

    Paper: see ``LeanInvertedResidual``.
    """

    blocks: int = 3
    """How many, counted from the end; those that ``targets`` name, where it does."""

    def fits(self, module: nn.Module) -> bool:
        """Inverted residuals."""
        return type(module) is InvertedResidual

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The blocks that learn."""
        require_at_least(1, blocks=self.blocks)
        found = self.chosen(model)
        last = list(found) if self.targets else list(found)[-self.blocks :]
        return {name: LeanInvertedResidual.of(found[name]) for name in last}

    def owns(self, part: str) -> bool:
        """All convolutions, the inner norms' shifts, and the last norm with its statistics."""
        return part.startswith("project.") or part.endswith((".conv.weight", ".bn.bias"))

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        """The block as it was, with what it learnt."""
        return module.plain()
