"""Routers of widths as a change of a model with experts."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from torch import nn

from zoo.changes import Change, apply
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.moe.widths import ExpertWidths

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertWidthsOf(Change, kind="expert_widths"):
    """``ExpertWidths`` in every layer of experts; they have an effect once its matrices are records of layout "nested"
    (``zoo.quantize(model, "d2moe")``)."""

    widths: tuple[int, ...] = (2, 3, 4)
    """Bits, rising."""

    def __post_init__(self):
        if not self.widths or list(self.widths) != sorted(set(self.widths)) or not self.widths[0] >= 1:
            raise ValueError(f"widths must be bits of at least 1 that rise, got {self.widths}")

    def install(self, model: nn.Module) -> None:
        """Add them, fresh."""
        layers = [module for module in model.modules() if isinstance(module, RoutedExperts)]
        if not layers:
            raise ValueError(f"expert_widths takes a mixture of experts, {type(model).__name__} has none")
        if any(layer.precision is not None for layer in layers):
            raise ValueError("the experts have routers of widths already")
        for layer in layers:
            like = next(layer.parameters())
            with like.device:
                made = ExpertWidths(layer.num_experts, layer.w1.shape[1], self.widths)
            layer.precision = made.to(like.dtype).train(layer.training)


def expert_widths(model: Model, widths: tuple[int, ...] = (2, 3, 4)) -> Model:
    """Give each layer of experts a second router, which says in how many bits an expert computes a token, in place.

    ``zoo.quantize(model, "d2moe")`` does so and teaches them; see ``zoo.layers.moe.widths.ExpertWidths``.

    Args:
        model: with experts.
        widths: bits, rising.

    Returns:
        ``model``.

    Raises:
        ValueError: for widths that do not rise, or a model without experts, with routers already, or compressed.

    Paper: "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving", arXiv 2504.15299.
    """
    apply(model, ExpertWidthsOf(widths=tuple(widths)))
    return model
