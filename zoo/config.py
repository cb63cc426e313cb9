"""Configurations: frozen keyword-only dataclasses whose fields a caller may override."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

from zoo.registry import nearest

ConfigType = TypeVar("ConfigType")
FREE = {  # fields of training and of speed, which change no output of a trained model beyond rounding
    "chunk_size", "initializer_range", "residual_in_fp32", "balance_weight", "z_weight", "joint_balance", "bias_speed",
    "capacity_factor", "mtp_weight", "mtp_depth", "drop_rate", "drop_path_rate", "proj_drop_rate", "auxiliary_weight",
    "mixer_drop_rate", "conv_drop_rate", "embedding_drop_rate", "input_drop_rate", "kernel_dropout", "kernel_lr",
    "class_drop_rate", "input_offset", "norm_momentum",
}  # fmt: skip


def describe_fields(config_class: type) -> dict[str, str]:
    """Field -> the string below its declaration in ``config_class``, or in the nearest of its bases that has one.

    A class whose source cannot be found contributes none.
    """
    found: dict[str, str] = {}
    for declared in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(declared):
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(declared))).body
        except (OSError, TypeError):  # typed into a prompt, or run from a string
            continue
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text).replace("\n", " ")
    return found


def override(config: ConfigType, name: str, changes: dict[str, Any]) -> ConfigType:
    """A copy of ``config`` with some fields changed.

    Raises:
        TypeError: for a field that does not exist, with the nearest one and all that do.
    """
    fields = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for field in changes:
        if field not in fields:
            raise TypeError(f"{name} has no option {field!r}{nearest(field, fields)}; its options: {', '.join(fields)}")
    return dataclasses.replace(config, **{field: _tuples(value) for field, value in changes.items()})  # type: ignore[type-var]


def agreed(
    config: ConfigType, given: typing.Mapping[str, Any], implied: typing.Mapping[str, Any], source: str
) -> ConfigType:
    """``config`` with the fields that the layout of a file of weights implies, as far as it has them; those that change
    no output stay as they were given.

    Raises:
        ValueError: naming ``source``, for a field that was given another value.
    """
    settled = {field: value for field, value in implied.items() if hasattr(config, field)}
    against = {field: given[field] for field, value in settled.items() if given.get(field, value) != value}
    free = {field: against.pop(field) for field in (*FREE, "num_classes") if field in against}  # or a fresh classifier
    if against:
        raise ValueError(
            f"{source} was made with {_named(settled)}: its tensors would load into a model with {_named(against)} and "
            "compute something else; create the model with the former"
        )
    return dataclasses.replace(config, **settled | free)  # type: ignore[type-var]


def _named(fields: typing.Mapping[str, Any]) -> str:
    return ", ".join(f"{field}={value!r}" for field, value in fields.items())


def from_json(
    config: ConfigType, name: str, fields: dict[str, Any], check: Callable[[dict[str, Any]], None] | None = None
) -> ConfigType:
    """``config`` with the fields of a file: lists become tuples, and every value must have its field's type.

    Args:
        config: what the fields are changes to.
        name: of the model, for errors.
        fields: as JSON has them.
        check: sees the values before a configuration is made of them, which may already be too much for large ones.

    Raises:
        TypeError: for a field that does not exist, or a value of another type.
        ValueError: for a number that no field means: NaN, an infinity or a negative integer where ``config`` has none.
    """
    if not isinstance(fields, dict):
        raise TypeError(f"{name}: the configuration must be an object, got {fields!r}")
    hints = typing.get_type_hints(type(config))
    values = {field: _typed(_tuples(value), hints.get(field)) for field, value in fields.items()}
    for field, value in values.items():
        if field in hints and not _fits(value, hints[field]):
            hint = hints[field]
            wanted = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
            raise TypeError(f"{name}: {field} must be {wanted}, got {value!r}")
    if check is not None:
        check(values)
    changed = override(config, name, values)
    for field, value in values.items():  # what the configuration itself accepts
        known = map(_unusual, _numbers(getattr(config, field)))
        if unusual := set(map(_unusual, _numbers(value))) - {"", *known}:
            raise ValueError(f"{name}: {field} must not be {' or '.join(sorted(unusual))}, got {value!r}")
    return changed


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _typed(value: Any, hint: Any) -> Any:
    """Integers as floats where a field holds floats alone; JSON does not tell 1 from 1.0."""
    options = typing.get_args(hint)
    if isinstance(value, tuple) and typing.get_origin(hint) is tuple and options:
        return tuple(_typed(item, options[0]) for item in value)
    alone = hint is float or (float in options and int not in options)
    return float(value) if alone and type(value) is int and abs(value) < 2**1000 else value


def _numbers(value: Any) -> typing.Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _unusual(number: float) -> str:
    """What is odd about a number; the empty string for most."""
    if isinstance(number, int):
        return "negative" if number < 0 else ""
    return "not a number" if math.isnan(number) else "infinite" if math.isinf(number) else ""


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in options)
    if origin is tuple:
        each = options[:1] * len(value) if options[1:] == (...,) and isinstance(value, tuple) else options
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, options[0]) and _fits(v, options[1]) for k, v in value.items())
    if dataclasses.is_dataclass(hint):
        return isinstance(value, (dict, hint))  # type: ignore[arg-type]
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, hint)


def require_positive(config: Any, *fields: str) -> None:
    """Raise a ValueError unless the named fields are integers of at least 1, or None where that is their default."""
    default = {field.name: field.default for field in dataclasses.fields(config)}
    for field in fields:
        value = getattr(config, field)
        if value is None and default[field] is None:
            continue
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{field} must be a positive integer, got {value!r}")


# what the numbers of a field must be, by its name, which means the same in every family
_RANGES = {
    "must be in [0, 1)": (r"(.+_)?drop_rate", lambda value: 0 <= value < 1),
    "must be finite and above 0": (r"(.+_)?mlp_ratio|rope_base|crop_pct|std", lambda value: 0 < value < math.inf),
    "must not be negative": (
        r".+_(eps|std)|(balance|z|mtp|commitment|entropy|predictor)_weight|initializer_range|embedding_scale",
        lambda value: 0 <= value < math.inf,
    ),
    "must be finite": (r".+_multipliers?|(.+_)?scale|mean", math.isfinite),
}


def require_ranges(config: Any) -> None:
    """Raise a ValueError for rates, scales, weights and the like that no model can work with, NaN among them."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        for rule, (names, fits) in _RANGES.items():
            if re.fullmatch(names, field.name) and not all(map(fits, (v for v in numbers if v is not None))):
                raise ValueError(f"{field.name} {rule}, got {value!r}")
