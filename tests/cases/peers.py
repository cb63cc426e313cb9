"""transformers' models beside ours: with weights that tell one from another, and gradients under their names."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def shaken(config: Any, scale: float = 0.1, **options: Any) -> Any:
    """transformers' model, every parameter away from its initial value, so that none can be forgotten."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def close(a: Tensor, b: Tensor) -> None:
    """To 1e-4, in float32."""
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, converter: ModuleType) -> None:
    """Of all parameters, under transformers' names."""
    gradients = converter.to_transformers({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-3, msg=name)
