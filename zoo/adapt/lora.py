"""LoRA and DoRA, by peft; LoRA over compressed layers, too."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zoo.adapt.held import is_held, joined
from zoo.adapt.method import Adapter
from zoo.layers.adapt import mark_of
from zoo.layers.options import require_at_least
from zoo.layers.precision import computes_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Adapter, kind="lora"):
    """y = W x + (alpha / rank) B A x with B = 0 at first, in the layers of peft, which must be installed.

    W may be compressed (``zoo.quantize``, ``zoo.sparsify``): it is read where it lies, and frozen (QLoRA). Into such
    a W the product is merged where ``zoo.merge_adapter`` is told what becomes of it.

    Papers: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685; Dettmers et al., "QLoRA:
    Efficient Finetuning of Quantized LLMs", arXiv 2305.14314.
    """

    adds = ("lora_A", "lora_B", "lora_magnitude_vector")
    inner = "base_layer"

    rank: int = 8
    """Rows of A."""
    alpha: float = 16.0
    """Numerator of the factor."""
    dropout: float = 0.0
    """Of the input of A, in training."""

    def fits(self, module: nn.Module) -> bool:
        """Linear layers, compressed ones too."""
        return isinstance(module, nn.Linear) or is_held(module)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Peft's layers around the chosen ones, made outside of the model."""
        require_at_least(1, rank=self.rank)
        layers = self.chosen(model)
        self.check(layers)
        try:
            peft = importlib.import_module("peft")
        except ImportError as error:
            raise ImportError("LoRA needs peft: pip install efficient-zoo[peft]") from error
        held = nn.ModuleDict({str(index): layer for index, layer in enumerate(layers.values())})
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(held), **self.options()
        )
        if any(map(is_held, layers.values())):
            importlib.import_module("zoo.integrations.peft").over_records(config)
        peft.inject_adapter_in_model(config, held)
        made: dict[str, Any] = dict(zip(layers, held.values(), strict=True))
        for name, layer in layers.items():
            if is_held(layer):  # says nothing of what is computed in
                made[name].lora_A.to(computes_in(model).dtype)
                made[name].lora_B.to(computes_in(model).dtype)
        return made

    @contextmanager
    def damped(self, module: Any, factor: float) -> Iterator[None]:
        """By peft's scaling; of DoRA the direction alone."""
        before = dict(module.scaling)
        module.scaling.update({name: factor * scale for name, scale in before.items()})
        try:
            yield
        finally:
            module.scaling.update(before)

    def options(self) -> dict[str, Any]:
        """Further ones of peft's ``LoraConfig``."""
        return {}

    def check(self, layers: dict[str, Any]) -> None:
        """Raise a ValueError for layers that it cannot be put on."""

    def merges(self, model: nn.Module) -> bool:
        """Where all its layers have matrices of numbers."""
        own = [module for module in model.modules() if (mark := mark_of(module)) and mark.kind == self.kind]
        return not any(is_held(getattr(module, "base_layer", None)) for module in own)

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        """A layer with the product added to its matrix, or of a compressed one's numbers and the product."""
        if is_held(module.base_layer):
            return joined(module, into)
        made = copy.deepcopy(module)
        if not made.merged:
            made.merge()
        return made.get_base_layer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoRA(LoRA, kind="dora"):
    """LoRA of the directions of a matrix's rows, whose lengths learn beside it.

    Paper: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353.
    """

    def fits(self, module: nn.Module) -> bool:
        """Linear layers with a matrix of numbers."""
        return isinstance(module, nn.Linear)

    def options(self) -> dict[str, Any]:
        return {"use_dora": True}

    def check(self, layers: dict[str, Any]) -> None:
        for name, layer in layers.items():
            if not layer.weight.is_meta and not torch.linalg.vector_norm(layer.weight.detach(), dim=1).all():
                raise ValueError(f"{name} has a row of zeros, and dora divides a row by its length: leave it out")
