"""SinkLoRA: LoRA while attention is kept to groups of a long sequence and its first tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from zoo.adapt.lora import LoRA
from zoo.layers.attention import CausalAttention, ShiftedAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinkLoRA(LoRA, kind="sink_lora"):
    """LoRA on the projections of softmax attention, which in training attends in shifted groups and to sinks.

    Outputs in eval mode are those of whole attention. The authors tune embeddings and norms too:
    ``also=["embedding.*", "*norm.weight"]``.

    Papers: see ``ShiftedAttention``.
    """

    groups: int = 4
    """Parts that a sequence is cut into."""
    sinks: int = 4
    """First tokens that every token sees."""
    returned: float = 0.5
    """Share of the shifted half of the heads that is not shifted after all."""

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Attention in groups, and peft's layers around its projections."""
        made: dict[str, nn.Module] = {
            name: ShiftedAttention.of(layer, self.groups, self.sinks, self.returned)
            for name, layer in _attention(model).items()
        }
        if not made:
            raise ValueError(f"sink_lora takes a model with whole softmax attention, {type(model).__name__} has none")
        return made | super().modules(model)

    def chosen(self, model: nn.Module) -> dict[str, Any]:
        """The projections of the attention, or those that ``targets`` name."""
        found = super().chosen(model)
        places = tuple(f"{name}." for name in _attention(model))
        return found if self.targets else {name: layer for name, layer in found.items() if name.startswith(places)}

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        return module.plain() if isinstance(module, ShiftedAttention) else super().merged(module, into)


def _attention(model: nn.Module) -> dict[str, CausalAttention]:
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is CausalAttention and module.softcap is None and module.sinks is None
    }
