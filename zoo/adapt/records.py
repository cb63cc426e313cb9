"""Adapters of compressed models: scales, tables, or codes that follow low ranks."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import nn

from zoo.adapt.method import Adapter
from zoo.layers.adapt.records import QuantisedLoRA, TunedRecord
from zoo.layers.options import require_at_least
from zoo.layers.precision import computes_in
from zoo.layers.quant.layers import Linear


class OfRecords(Adapter):
    """What is put on the linear layers of a model that ``zoo.quantize`` has compressed, in one layout. Experts,
    convolutions and embeddings keep their records, frozen.

    Attributes:
        layout: of the records.
    """

    layout: ClassVar[str] = "int"

    def fits(self, module: nn.Module) -> bool:
        """Linear layers over plain records of the layout."""
        if type(module) is not Linear:
            return False
        form = module.weight.format
        return form.is_plain and form.activation_bits is None and form.layout == self.layout

    def chosen(self, model: nn.Module) -> dict[str, Any]:
        """The layers that ``targets`` name; a ValueError for a model without such records, too."""
        if not any(map(self.fits, model.modules())):
            raise ValueError(
                f"{self.kind} tunes linear layers over plain records of layout {self.layout!r}, and the model has "
                "none: zoo.quantize makes them"
            )
        return super().chosen(model)

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        """A layer over the record of the same numbers, whose scales are float32."""
        return module.plain()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PEQA(OfRecords, kind="peqa"):
    """Of a model in integers (``zoo.quantize``) the scales learn and no code changes: tasks differ in scales alone, and
    every kernel for integers computes the tuned model.

    Paper: Kim et al., "Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer
    Quantization", arXiv 2305.14152.
    """

    adds = ("delta",)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers whose scales learn."""
        return {name: TunedRecord(layer, "scale") for name, layer in self.chosen(model).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SketchTune(OfRecords, kind="sketchtune"):
    """Of a model in tables (``zoo.quantize(model, "sketch")``) these learn, rows times groups times 2^bits numbers, and
    no code changes.

    Paper: Zhang et al., "Sketch to Adapt: Fine-Tunable Sketches for Efficient LLM Adaptation", arXiv 2410.06364.
    """

    adds = ("delta",)
    layout = "table"

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers whose tables learn."""
        return {name: TunedRecord(layer, "table") for name, layer in self.chosen(model).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class L4Q(OfRecords, kind="l4q"):
    """Of a model in integers the scales and a product of low rank learn, which the codes follow: what is trained is
    what a plain compressed model computes. See ``QuantisedLoRA``.

    Paper: Jeon et al., "L4Q: Parameter Efficient Quantization-Aware Fine-Tuning on Large Language Models", arXiv
    2402.04902.
    """

    adds = ("A", "B", "delta")

    rank: int = 8
    """Of the product."""
    alpha: float = 16.0
    """The product is times alpha / rank."""

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers whose codes follow."""
        require_at_least(1, rank=self.rank)
        like = computes_in(model)
        return {name: QuantisedLoRA(layer, self.rank, self.alpha, like) for name, layer in self.chosen(model).items()}
