"""Image classifiers whose images may leave early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zoo.layers.depth.exits import ImageExits, probabilities

if TYPE_CHECKING:
    from zoo.vision.base import VisionModel


def classify(model: VisionModel, exits: ImageExits, images: Tensor) -> Tensor:
    """Images (B, C, H, W) to logits (B, num_classes), each from the exit where it left, or from the end.

    What left is computed no further: the batch shrinks, and programs of fixed shapes cannot be made of it.
    """
    if model.training:
        return _trained(model, exits, images)
    needed = exits.needed
    if not needed:
        return model.forward_head(model.forward_features(images))
    model._check(images)
    x: Any = model.forward_embed(images)
    rows, done = torch.arange(len(images), device=images.device), []
    first, before = exits.after[0], None
    if exits.compares and first == 0:
        before = probabilities(exits.heads[0](model.patch_tokens(x)))
    for index, block in enumerate(model.layer_list()[1]):
        x = model._run(block, x)
        if exits.compares and index + 1 == first:
            before = probabilities(exits.heads[0](model.patch_tokens(x)))
        if index in exits.after[:needed] and len(rows):
            exit = exits.after.index(index)
            logits = exits.heads[exit](model.patch_tokens(x))
            before_it, before = before, probabilities(logits)
            leaves = exits.leaves(exit, before, before_it)
            done.append((rows[leaves], logits[leaves]))
            rows, before, x = tree_map(lambda part, stay=~leaves: part[stay], (rows, before, x))
        if not len(rows):
            break
    counts = [len(part) for part, _ in done] + [0] * (len(exits.after) - len(done))
    exits.report({}, {"left": torch.tensor([*counts, len(rows)], device=images.device)})
    if len(rows):
        done.append((rows, model.forward_head(model.forward_norm(x))))
    order = torch.cat([part for part, _ in done]).argsort()
    return torch.cat([logits for _, logits in done])[order]


def _trained(model: Any, exits: ImageExits, images: Tensor) -> Tensor:
    """The model's logits; those of a drawn exit are left as ``model.auxiliary_logits``."""
    model._check(images)
    x, logits = model.forward_embed(images), []
    for index, block in enumerate(model.layer_list()[1]):
        x = model._run(block, x)
        if index in exits.after:
            logits.append(exits.heads[exits.after.index(index)](model.patch_tokens(x)))
    model.auxiliary_logits = exits.weight, exits.sampled(logits)
    return model.forward_head(model.forward_norm(x))
