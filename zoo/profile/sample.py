"""What a model of any kind reads, and what its training minimises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.layers.report import auxiliary_losses

LENGTH = 256  # of a text or sequence, unless the model reads fewer
CONTEXT = 77  # vectors of the text that a model of images may read besides


def sample(model: Any, batch: int, tokens: int | None = None) -> Tensor:
    """Random tokens, vectors or images of the shape that the model wants, on its device.

    Args:
        tokens: length of a text or sequence; ``LENGTH``, or the model's longest, where None.

    Raises:
        TypeError: for a model whose configuration does not tell.
    """
    like = next(model.parameters())
    config: Any = getattr(model, "config", None)
    place = {"device": like.device}
    length = min(LENGTH, getattr(config, "max_length", LENGTH)) if tokens is None else tokens
    if hasattr(config, "vocab_size"):
        pair = (2,) if getattr(config, "pair", False) else ()
        return torch.randint(0, config.vocab_size, (batch, *pair, length), **place)
    if hasattr(config, "in_features"):
        shape = (batch, getattr(config, "length", length), config.in_features)
        return torch.randn(shape, dtype=like.dtype, **place)
    if hasattr(config, "num_levels"):
        return torch.randint(0, config.num_levels, (batch, config.in_chans, *config.image_shape), **place)
    if hasattr(config, "input_shape"):
        return torch.randn(batch, *config.input_shape, dtype=like.dtype, **place)
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
    kind = unit(model)
    return inputs.numel() if kind == "token" else len(inputs) if kind == "image" else inputs.shape[:2].numel()


def answer(model: Any, inputs: Tensor) -> Tensor:
    """What the model says; one of texts reads a context of ``CONTEXT`` vectors, and a text's vector, besides, one of
    motions the frame of what moves."""
    config, rows = model.config, len(inputs)
    if hasattr(config, "content_shape"):
        return model(inputs, content=inputs.new_ones(rows, *config.content_shape))
    if getattr(config, "pooled_dim", None) is None:
        return model(inputs)
    context = inputs.new_ones(rows, CONTEXT, config.context_dim)
    pooled, sizes = inputs.new_ones(rows, config.pooled_dim), inputs.new_ones(rows, 6)
    return model(inputs, context=context, pooled=pooled, sizes=sizes)


def loss(model: Any, inputs: Tensor) -> Tensor:
    """A scalar as costly as the model's own loss: that of its labels, or the mean square of what it answers."""
    scored = inputs.is_floating_point() or hasattr(model.config, "num_classes")
    found = answer(model, inputs).float().square().mean() if scored else model(inputs, labels=inputs)
    return found + sum(auxiliary_losses(model).values())
