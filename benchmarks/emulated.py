"""Emulated formats beside torch's own casts: the bits per byte of a nano in each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

import zoo
from zoo.benchmarks.tables import Shown
from zoo.layers.quant import compressible

FLOAT = "float32"
NEAR = 0.002  # bits per byte between what is rounded after every module and what torch's kernels round inside


class Kind(NamedTuple):
    """What ``zoo.emulate`` is called with, the dtype that has the same numbers, and by how much they may differ."""

    options: Mapping[str, Any]
    dtype: torch.dtype
    within: float


KINDS = {
    "weights in bfloat16": Kind({"exponent_bits": 8, "mantissa_bits": 7, "activations": False}, torch.bfloat16, 0.0),
    "weights in e4m3": Kind(
        {"exponent_bits": 4, "mantissa_bits": 3, "largest": 448.0, "activations": False}, torch.float8_e4m3fn, 0.0
    ),
    "weights in e5m2": Kind(
        {"exponent_bits": 5, "mantissa_bits": 2, "activations": False}, torch.float8_e5m2, 0.0
    ),
    "all in bfloat16": Kind({"exponent_bits": 8, "mantissa_bits": 7}, torch.bfloat16, NEAR),
}  # fmt: skip


@torch.no_grad()
def cast(model: Any, kind: Kind) -> Any:
    """The model in torch's dtype, in place: whole, or the same weights through it and back."""
    if kind.options.get("activations", True):
        return model.to(kind.dtype)
    weights: dict[int, nn.Parameter] = {id(weight): weight for weight in compressible(model).values()}
    for weight in weights.values():
        weight.copy_(weight.to(kind.dtype).to(weight.dtype))
    return model


def measured(
    name: str, forms: Sequence[str], score: Callable[[Any], float], advance: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A record a format of a nano."""
    trained: Any = zoo.create_model(name, pretrained=True).eval()
    records = []
    for form, kind in ((form, KINDS[form]) for form in forms):
        advance(f"{name}, {form}")
        emulated = zoo.emulate(copy.deepcopy(trained), **kind.options)
        pair = score(emulated), score(cast(copy.deepcopy(trained), kind))
        records.append({"model": name, "form": form, "score": pair[0], "torch": pair[1]})
    return records


def show(records: Sequence[Mapping[str, Any]], plain: Mapping[str, float]) -> Shown:
    """A row a model and format."""
    rows = []
    for r in records:
        apart, within = abs(r["score"] - r["torch"]), KINDS[r["form"]].within
        rows.append([
            f"{r['model']}, {r['form']}", f"{r['score']:.4f}", f"{r['torch']:.4f}",
            f"{r['score'] - plain[r['model']]:+.4f}" if r["model"] in plain else "", f"{apart:.1e}",
            f"{within:g}: {'met' if apart <= within else 'missed'}",
        ])  # fmt: skip
    columns = ["", "bits per byte", "torch's cast", "to float32", "difference", "expected at most"]
    return "Emulated formats (Pychop, arXiv 2504.07835) beside torch's own", columns, rows
