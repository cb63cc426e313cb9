"""Rotary positions in a ``config.json``: transformers' words for them, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PARAMETERS = {  # rope_type -> theirs: ours
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "length",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "length",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "attention_factor": "magnitude",
        "truncate": "truncate",
    },
}
_OTHER = {"rope_type", "type", "rope_theta"}
_FIXED = {"partial_rotary_factor": 1}  # with one value here


def read_rope(config: Mapping[str, Any], base: float = 10000.0) -> tuple[float, dict[str, Any] | None]:
    """The wavelength base, and the fields of the scaling (of a ``RotaryScaling``) or None.

    Args:
        config: with "rope_parameters" (transformers 5), or "rope_theta" and "rope_scaling" (before).
        base: where the file says none.

    Raises:
        ValueError: for a scaling, or an option of one, that has no counterpart here.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = float(rope.get("rope_theta") or config.get("rope_theta") or base)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _PARAMETERS:
        raise ValueError(f"rotary positions must be of a type among {', '.join(_PARAMETERS)}, got {kind!r}")
    given = {name: value for name, value in rope.items() if value is not None and name not in _OTHER}
    given |= {name: config[name] for name in _FIXED if config.get(name) is not None}
    for name, value in _FIXED.items():
        if given.pop(name, value) != value:
            raise ValueError(f"{name} of the rotary positions must be {value}, got {rope.get(name, config.get(name))}")
    words = _PARAMETERS[kind]
    if kind == "default":
        return base, None
    if unknown := set(given) - set(words):
        raise ValueError(f"rotary positions of type {kind!r} have no {', '.join(sorted(unknown))} here")
    fields = {ours: given[theirs] for theirs, ours in words.items() if theirs in given}
    longest = config.get("max_position_embeddings")
    if "length" in words.values() and longest is not None:
        fields.setdefault("length", longest)
        fields.setdefault("factor", longest / fields["length"])
    return base, {"kind": kind} | fields


def write_rope(base: float, scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """The inverse: the "rope_parameters" of transformers 5."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": base}
    words = _PARAMETERS[scaling["kind"]]
    fields = {theirs: scaling[ours] for theirs, ours in words.items() if scaling[ours] is not None}
    return {"rope_type": scaling["kind"], "rope_theta": base} | fields


def read_partial_rope(config: Mapping[str, Any], fraction: float, base: float = 10000.0) -> tuple[float, float]:
    """The wavelength base, and which part of a head's channels turns.

    Args:
        fraction, base: where the file says none.

    Raises:
        ValueError: for rotary positions that are scaled.
    """
    whole = dict(config)
    rope = dict(whole.pop("rope_parameters", None) or {})
    named = whole.pop("partial_rotary_factor", None)
    fraction = rope.pop("partial_rotary_factor", named) or fraction
    base, scaling = read_rope(whole | {"rope_parameters": rope}, base)
    if scaling is not None:
        raise ValueError(f"rotary positions must be unscaled, got {scaling}")
    return base, float(fraction)


def write_partial_rope(base: float, fraction: float) -> dict[str, Any]:
    """The inverse: the "rope_parameters" of transformers 5."""
    return write_rope(base, None) | {"partial_rotary_factor": fraction}
