"""Memory formats relay every parameter of four dimensions: layers whose are no convolutions' must not notice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

import zoo


def relaid(name: str) -> bool:
    """Whether a parameter of the model besides those of convolutions is one that memory formats relay."""
    model = zoo.create_model(name, device="meta")
    others = [module for module in model.modules() if not isinstance(module, _ConvNd)]
    return any(p.dim() in (4, 5) for module in others for p in module.parameters(recurse=False))


@pytest.mark.parametrize("name", [name for name in zoo.list_models("*_nano") if relaid(name)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_changes_rounding_alone(name, dtype):
    model: Any = zoo.create_model(name, dtype=dtype).eval()
    c = model.config
    tokens = torch.randint(0, getattr(c, "vocab_size", 2), (2, 20))
    x = torch.randn(2, c.in_chans, *c.image_shape, dtype=dtype) if hasattr(c, "in_chans") else tokens
    wide: nn.Module = copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        torch.testing.assert_close(wide(x), model(x))
    if x.is_floating_point():
        deployed: Any = zoo.create_model(name, dtype=dtype, deploy=True)
        deployed.load_state_dict(model.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(deployed(x), model(x))
