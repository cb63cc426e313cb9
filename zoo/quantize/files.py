"""Records in a ``config.json``: which weights are compressed, and how."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.adapt import before
from zoo.layers.quant import Format, install, records

KEY = "quantization"


def described_records(model: nn.Module) -> dict[str, Any]:
    """What ``config.json`` says of a model's records: {"quantization": {"method": ..., "weights": [{"format": ...,
    "names": [...]}, ...]}}; empty for a model without."""
    names: dict[Format, list[str]] = {}
    for name, record in records(model).items():
        names.setdefault(record.format, []).append(before(model, name))
    weights = [{"format": dataclasses.asdict(form), "names": held} for form, held in names.items()]
    return {KEY: {"method": getattr(model, "quantization", {}), "weights": weights}} if weights else {}


def card_rows(model: nn.Module) -> dict[str, str]:
    """What a model card says of how a model's records were made; empty for a model without."""
    forms = {record.format for record in records(model).values()}
    if not forms:
        return {}
    method = getattr(model, "quantization", {}).get("method")
    rows = {"compressed by": f"zoo.quantize, {method}"} if method else {}
    for row, field in (("bits of a code", "bits"), ("layout", "layout"), ("weights a scale", "group_size")):
        found = {getattr(form, field) for form in forms}
        known = sorted(value for value in found if value is not None)
        rows[row] = ", ".join([*map(str, known), *(["all of a row"] if None in found else [])])
    inputs = sorted({form.activation_bits for form in forms if form.activation_bits is not None})
    return rows | ({"bits of inputs": ", ".join(map(str, inputs))} if inputs else {})


def formats(content: Mapping[str, Any]) -> dict[str, Format]:
    """Name of a weight -> its format, from the content of a ``config.json``.

    Raises:
        ValueError: for an entry that is not as ``described_records`` writes it.
    """
    if KEY not in content:
        return {}
    try:
        parts = content[KEY]["weights"]
        return {str(name): Format(**part["format"]) for part in parts for name in part["names"]}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"config.json describes no compressed weights under {KEY!r}: {error}") from error


def as_bytes(form: Format) -> Tensor:
    """A format as a tensor of bytes, to lie beside others in a file."""
    return torch.tensor(list(json.dumps(dataclasses.asdict(form)).encode()), dtype=torch.uint8)


def from_bytes(found: Tensor) -> Format:
    """The format that ``as_bytes`` made bytes of."""
    return Format(**json.loads(bytes(found.tolist())))


def with_records(build: Callable[[Any], nn.Module], given: Mapping[str, Format]) -> Callable[[Any], nn.Module]:
    """``build``, with empty records in the place of weights."""
    return partial(_built, build, given) if given else build


def _built(build: Callable[[Any], nn.Module], given: Mapping[str, Format], config: Any) -> nn.Module:
    model = build(config)
    install(model, given)
    return model
