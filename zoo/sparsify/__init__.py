"""Weights without their zeros for any model: one door, and a method a file behind it."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from zoo.layers.quant.between import between
from zoo.layers.sparse import Pattern
from zoo.layers.sparse.masks import Mask
from zoo.layers.sparse.replace import prunable
from zoo.patterns import check_used, matched, patterns_of
from zoo.quantize.calibration import INPUTS, Calibration, Given
from zoo.sparsify.change import Sparse
from zoo.sparsify.magnitude import Magnitude
from zoo.sparsify.method import METHODS, Method, method_of
from zoo.sparsify.r_sparse import RSparse, nbytes_read
from zoo.sparsify.wanda import Wanda

__all__ = ["METHODS", "Calibration", "Magnitude", "Method", "RSparse", "Sparse", "Wanda", "nbytes_read", "sparsify"]

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def sparsify(
    model: Model,
    method: str = "magnitude",
    *,
    sparsity: float = 0.5,
    pattern: str | None = None,
    calibration: Given | None = None,
    skip: str | tuple[str, ...] = (),
    head: bool = False,
    **options: Any,
) -> Model:
    """Prune a model: keep the best numbers of its matrices and store those alone, in place; or, by "r_sparse", let each
    token read a part of them.

    Linear layers and experts are pruned; embeddings, weights that are shared, convolutions, norms, routers and what
    recurrences keep stay as they are. The numbers that are left go on learning, and no others come back. The model
    saves and loads like any other: ``zoo.save_model`` writes the numbers that are left and a bit a place.

    Args:
        model: of ``create_model``.
        method: a name of ``zoo.sparsify.METHODS``: "magnitude", "wanda" or "r_sparse".
        sparsity: share of the numbers that go, or are not read, in [0, 1).
        pattern: "unstructured" (the best of a matrix; magnitude's), "row" (the best of each row; Wanda's) or "n:m",
            such as "2:4" (n of every m columns, whatever ``sparsity`` says); None: the method's.
        calibration: what a calibrated method sees of the model's inputs: tokens (B, T), a list of such batches, the
            path of a text, or what else ``zoo.quantize`` takes.
        skip: patterns of names of weights that stay, such as "blocks.0.*".
        head: prune the head of a model too, where it is not tied.
        options: fields of the method.

    Returns:
        The model.

    Raises:
        ValueError: for an unknown method or pattern, a sparsity outside [0, 1), rows that m does not divide, a missing
            calibration, a model without weights to prune, or one that is factorised or quantised. Nothing is changed.
        TypeError: for an option that the method does not have, or a calibration or skip that is none of the above.
    """
    chosen = method_of(method, options)
    seen = None if calibration is None else Calibration.of(calibration, model)
    if chosen.calibrated and seen is None:
        raise ValueError(f"{method} needs calibration=, {INPUTS}; the command --calibration PATH")
    if seen is not None:
        seen.check(model)
    wanted = Pattern(pattern or chosen.pattern, sparsity)
    names = _wanted(model, chosen, patterns_of(skip), head)
    chosen.check(model, names, wanted)
    training = model.training
    try:
        model.eval()
        chosen.put(model, names, wanted, chosen.see(model, names, seen))
    finally:
        model.train(training)
    return model


def _wanted(model: nn.Module, chosen: Method, skip: tuple[str, ...], head: bool) -> list[str]:
    if any(True for _ in between(model, Mask)):
        raise ValueError("the model learns with masks: zoo.settle(model) ends that, then keep what is left")
    names = [name for name in prunable(model) if (head or name != "head.weight") and chosen.takes(model, name)]
    if not names:
        raise ValueError(f"there is nothing to prune in {type(model).__name__}: no plain linear layer and no expert")
    check_used(skip, names)
    left = [name for name in names if not matched(name, skip)]
    if not left:
        raise ValueError("skip leaves no weight to prune")
    return left
