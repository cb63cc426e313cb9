"""Weights of a few bits for any model: one door, and a method a file behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.quant import Record, compressible, install, matrices, records
from zoo.quantize.calibration import Calibration
from zoo.quantize.method import METHODS, Method, method_of
from zoo.quantize.rounding import RTN
from zoo.quantize.smoothquant_plus import SmoothQuantPlus
from zoo.quantize.store import Store

__all__ = ["METHODS", "RTN", "Calibration", "Method", "SmoothQuantPlus", "quantize"]


@torch.no_grad()
def quantize(
    model: nn.Module,
    method: str = "rtn",
    *,
    calibration: Calibration | None = None,
    skip: str | tuple[str, ...] = (),
    embeddings: bool = True,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> nn.Module:
    """Replace the weights of a model by records of a few bits, in place.

    Linear layers, embeddings, heads and gated experts are compressed; convolutions, norms, routers and what recurrences
    keep (A_log, D, dt_bias, ...) stay as they are. The model computes as before and saves as it is:
    ``zoo.save_model`` writes the records, ``create_model`` reads them. Their weights no longer learn: what learns is
    put beside them.

    Args:
        model: of ``create_model``, or any module.
        method: a name of ``zoo.quantize.METHODS``: "rtn" (round to nearest), "smoothquant_plus".
        calibration: what a calibrated method sees of the model's inputs; see ``Calibration``.
        skip: patterns of names of weights that stay, such as "head.weight" or "blocks.0.*".
        embeddings: compress embeddings, and with them heads that are tied to one.
        folder: keeps what is done, a weight after another: the same call goes on where it was broken off.
        progress: called with the weights done and all there are.
        options: fields of the method: for all of them ``bits`` (4), ``group_size`` (None: the largest divisor of a
            layer's inputs up to 32; an integer must divide them, or be no smaller), ``symmetric`` (False: zeros are
            stored) and ``scale_dtype`` ("bfloat16").

    Returns:
        ``model``.

    Raises:
        ValueError: for an unknown method, options out of range, a group that does not divide the inputs of a layer, a
            model that is compressed already or has nothing to compress, or a missing calibration.
        TypeError: for an option that the method does not have.
    """
    chosen = method_of(method, options)
    if done := records(model):
        raise ValueError(
            f"the model is compressed already, {next(iter(done))} among others: quantise the float model that it was "
            "made from"
        )
    if chosen.calibrated and calibration is None:
        raise ValueError(f"{method} needs calibration=zoo.quantize.Calibration(inputs), inputs that the model takes")
    if calibration is not None:
        calibration.check(model)
    weights = _wanted(model, (skip,) if isinstance(skip, str) else tuple(skip), embeddings)
    _check_groups(chosen, weights)
    store = Store(folder, {"method": method, **chosen.fields()})
    training = model.training
    known = chosen.prepare(model.eval(), list(weights), calibration, store)
    made: dict[int, Record] = {}
    for index, name in enumerate(weights):
        weight = compressible(model)[name]
        if id(weight) not in made:
            made[id(weight)] = _record(chosen, name, matrices(model, name), known, store)
        weights[name] = made[id(weight)]
        if progress is not None:
            progress(index + 1, len(weights))
    install(model, weights)
    model.quantization = {"method": method, **chosen.fields()}  # type: ignore[assignment]
    return model.train(training)


def _wanted(model: nn.Module, skip: tuple[str, ...], embeddings: bool) -> dict[str, Any]:
    """The weights to compress; one that is tied to a skipped one is skipped."""
    weights = compressible(model)
    tables = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    left = {id(weight) for name, weight in weights.items() if any(fnmatchcase(name, pattern) for pattern in skip)}
    left |= set() if embeddings else tables
    unused = [pattern for pattern in skip if not any(fnmatchcase(name, pattern) for name in weights)]
    if unused:
        raise ValueError(
            f"skip names no weight by {', '.join(map(repr, unused))}; names are as {next(iter(weights))!r}"
        )
    wanted = {name: weight for name, weight in weights.items() if id(weight) not in left}
    if not wanted:
        raise ValueError(
            f"there is nothing to compress in {type(model).__name__}: no linear layer, embedding or expert"
        )
    return wanted


def _check_groups(method: Method, weights: Mapping[str, Tensor]) -> None:
    wrong = []
    for name, weight in weights.items():
        try:
            method.format(weight.shape[-1]).groups(weight.shape[-1])
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise ValueError(f"{wrong[0]}{f' (and {len(wrong) - 1} more layers)' if wrong[1:] else ''}")


def _record(method: Method, name: str, matrix: Tensor, known: Mapping[str, Any], store: Store) -> Record:
    form = method.format(matrix.shape[-1])

    def make() -> dict[str, Tensor]:
        return dict(method.record(matrix.float(), form, known.get(name)).named_parameters())

    found = store.once(f"record.{name}", make)
    with torch.device("meta"):
        record = Record(matrix.shape, form)
    record.load_state_dict(found, assign=True)
    return record.requires_grad_(False)
