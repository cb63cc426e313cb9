"""LoRA by peft inside a model that goes on learning, as a stage of a training."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def inject(model: Model, targets: Sequence[str], rank: int, alpha: float) -> Model:
    """LoRA, (alpha / rank) B A x with B = 0 at first, on linear layers, in place; other parameters learn as they did.

    Args:
        targets: names of the layers.

    Raises:
        ImportError: without peft.
    """
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install efficient-zoo[peft]") from error
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), model)
    for name, parameter in model.named_parameters():  # peft froze them all
        parameter.requires_grad_("lora_" in name or name.replace(".base_layer", "") in free)
    return model


def merge(model: Model) -> Model:
    """Add what LoRA has learnt to the weights beneath it, in its place; every parameter learns again."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_base_layer"):
            layer: Any = module
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model.requires_grad_(True)
