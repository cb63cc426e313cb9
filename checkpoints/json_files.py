"""JSON beside weights: read with every surprise named, written so that any reader of JSON understands it.

JSON has no infinity, which some options are: it is written as transformers does, ``{"__float__": "Infinity"}``.
Python's own form, a bare ``Infinity``, is read as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEEPEST = 32  # lists and objects in one another; a config.json has three or four
_FLOAT = "__float__"


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        ValueError: naming the file, when it is no text, no JSON or no object, names a key twice or nests too deeply.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # not text, not JSON, an endless number, or nested too deeply
        raise ValueError(f"{path} is not valid JSON: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}; fetch it again")
    if (depth := _depth(content)) > DEEPEST:
        raise ValueError(f"{path} is not valid JSON here: it nests {depth} deep, at most {DEEPEST}; fetch it again")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, its infinities as objects."""
    path.write_text(json.dumps(_written(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _object(pairs: list[tuple[str, Any]]) -> Any:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return float(content[_FLOAT]) if set(content) == {_FLOAT} and isinstance(content[_FLOAT], str) else content


def _written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return {_FLOAT: "Infinity" if value > 0 else "-Infinity"}
    return value


def _depth(content: Any) -> int:
    """How many lists and objects lie in one another, level by level."""
    level, depth = [content], 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth
