"""What a model of any kind reads, and what its training minimises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.layers.report import auxiliary_losses


def sample(model: Any, batch: int, tokens: int) -> Tensor:
    """Random tokens, vectors or images of the shape that the model wants, on its device.

    Raises:
        TypeError: for a model whose configuration does not tell.
    """
    like = next(model.parameters())
    config: Any = getattr(model, "config", None)
    place = {"device": like.device}
    if hasattr(config, "vocab_size"):
        return torch.randint(0, config.vocab_size, (batch, tokens), **place)
    if hasattr(config, "in_features"):
        shape = (batch, getattr(config, "length", tokens), config.in_features)
        return torch.randn(shape, dtype=like.dtype, **place)
    if hasattr(config, "num_levels"):
        return torch.randint(0, config.num_levels, (batch, config.in_chans, *config.image_shape), **place)
    if hasattr(config, "image_shape"):
        return torch.randn(batch, config.in_chans, *config.image_shape, dtype=like.dtype, **place)
    raise TypeError(f"the configuration of {type(model).__name__} does not say what it reads: give a model of the zoo")


def unit(model: Any) -> str:
    """What the model reads."""
    if hasattr(model.config, "vocab_size"):
        return "token"
    return "vector" if hasattr(model.config, "in_features") else "image"


def items(model: Any, inputs: Tensor) -> int:
    """How many of them."""
    return len(inputs) if unit(model) == "image" else inputs.shape[0] * inputs.shape[1]


def loss(model: Any, inputs: Tensor) -> Tensor:
    """A scalar as costly as the model's own loss: that of its labels, or the mean square of what it answers."""
    scored = inputs.is_floating_point() or hasattr(model.config, "num_classes")
    found = model(inputs).float().square().mean() if scored else model(inputs, labels=inputs)
    return found + sum(auxiliary_losses(model).values())
