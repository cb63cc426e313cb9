"""Small diffusion models, what they are calibrated with, and how far others are from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import zoo
from zoo.layers.quant import records
from zoo.quantize import Calibration
from zoo.quantize.calibration import model_outputs

SMALL: dict[str, dict[str, Any]] = {
    "dit_nano": {"depth": 2, "dim": 16, "num_heads": 2},
    "unet_nano": {
        "dims": (8, 16),
        "depths": (0, 1),
        "mid_depth": None,
        "norm_groups": 4,
        "head_dim": 8,
        "context_dim": 8,
    },
}


def small(name: str) -> Any:
    """With no layer of zeros."""
    torch.manual_seed(0)
    model = zoo.create_model(name, **SMALL[name])
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def seen(model: Any, seed: int = 0) -> Calibration:
    return Calibration.of_samples(model, count=6, steps=4, seed=seed)


def change(model: Any, found: Any, calibration: Calibration) -> float:
    with torch.no_grad():
        expected = model_outputs(model, calibration)
        return ((model_outputs(found, calibration) - expected).square().sum() / expected.square().sum()).item()


def reloaded(found: Any, path: Path) -> Any:
    """A saved model, which computes the same to the bit, of images of several times too."""
    zoo.save_model(found, path)
    again: Any = zoo.create_model(f"local-dir:{path}").eval()
    x, t = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.9, 0.4, 0.6])
    with torch.no_grad():
        assert torch.equal(found(x, t, torch.arange(4)), again(x, t, torch.arange(4)))
    assert {held.format for held in records(again).values()} == {held.format for held in records(found).values()}
    return again
