"""Options of `zoo train` that stand for arguments of the model: ways to tune it, and to train it with few numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo.adapt import ADAPTERS
from zoo.masks import SPARSITIES
from zoo.registry import nearest
from zoo.train.run_folder import value_at

ADAPTER, CHANGES = "--model.model_args.adapter", "--model.model_args.changes"


def with_methods(overrides: Sequence[str], recipe: Path | str) -> list[str]:
    """`--adapter paca --adapter.rank 8` and `--sparsity iss_p --sparsity.ratio 0.9` as arguments of the model."""
    rest, adapter = _taken(overrides, "--adapter")
    rest, sparsity = _taken(rest, "--sparsity")
    if not adapter and not sparsity:
        return rest
    content = yaml.safe_load(recipe if isinstance(recipe, str) else recipe.read_text(encoding="utf-8"))
    known = value_at(content, "model.init_args.model_args") or {}
    return [*rest, *_adapter(adapter, known.get("adapter")), *_sparsity(sparsity, known.get("changes") or [])]


def _adapter(fields: dict[str, Any], known: Any) -> Iterator[str]:
    """{"kind": "paca", "rank": 8} over what the recipe says; a path is a folder of `zoo.save_adapter`, which is trained
    on."""
    kind = fields.get("kind")
    if kind is not None and Path(str(kind)).is_dir():
        yield f"{ADAPTER}={kind}"
    elif kind is not None and kind not in ADAPTERS:
        raise ValueError(
            f"there is no folder {str(kind)!r} of zoo.save_adapter, and no adapter of that name"
            f"{nearest(str(kind), ADAPTERS)}; adapters: {', '.join(sorted(ADAPTERS))}"
        )
    elif fields:
        yield f"{ADAPTER}={json.dumps(_over(fields, known))}"


def _sparsity(fields: dict[str, Any], known: Sequence[Any]) -> Iterator[str]:
    """{"kind": "iss_p", "ratio": 0.9} in the place of the way to train with masks that the recipe's changes have, or
    after them."""
    if fields:
        rest = [change for change in known if not (isinstance(change, dict) and change.get("kind") in SPARSITIES)]
        ours = next((change for change in known if change not in rest), None)
        wanted = _over(fields, ours)
        if wanted.get("kind") not in SPARSITIES:
            close = nearest(str(wanted.get("kind")), SPARSITIES)
            raise ValueError(f"a sparsity is one of {', '.join(sorted(SPARSITIES))}, got {wanted.get('kind')!r}{close}")
        yield f"{CHANGES}={json.dumps([*rest, wanted])}"


def _taken(overrides: Sequence[str], flag: str) -> tuple[list[str], dict[str, Any]]:
    """The other options, and what `--flag KIND --flag.field value` says."""
    rest: list[str] = []
    fields: dict[str, Any] = {}
    options = iter(overrides)
    for option in options:
        name, equals, value = option.partition("=")
        if name == flag or name.startswith(f"{flag}."):
            value = value if equals else next(options, "")
            fields[name.removeprefix(flag).lstrip(".") or "kind"] = _read(value)
        else:
            rest.append(option)
    return rest, fields


def _read(value: str) -> Any:
    """As YAML has it; but 2:4 is no number of base 60 here."""
    return value if re.fullmatch(r"\d+:\d+", value) else yaml.safe_load(value)


def _over(fields: dict[str, Any], known: Any) -> dict[str, Any]:
    """The fields over those of a recipe, where it is of the same kind."""
    same = isinstance(known, dict) and fields.get("kind", known.get("kind")) == known.get("kind")
    return {**known, **fields} if same else fields
