"""Memory methods as options of a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo.train.memory.method import as_memories
from zoo.train.run_folder import value_at

TARGET = "model.memory"


def with_memory(overrides: Sequence[str], recipe: Path | str) -> list[str]:
    """``--memory streambp --memory.chunk_size 256`` as an argument of the task, [{"kind": "streambp", "chunk_size":
    256}], in place of the recipe's methods, and what they ask of the trainer where that is not given.

    A further ``--memory NAME`` is a further method, with the options behind it; options before any name go over the
    one method of the recipe.

    Args:
        overrides: options of the command line.
        recipe: a YAML file, or YAML.

    Raises:
        ValueError: for wrong methods or options.
    """
    rest: list[str] = []
    methods: list[dict[str, Any]] = []
    options = iter(overrides)
    for option in options:
        name, equals, value = option.partition("=")
        if name != "--memory" and not name.startswith("--memory."):
            rest.append(option)
            continue
        found = yaml.safe_load(value if equals else next(options, ""))
        if name == "--memory":
            methods.append({"kind": found})
        else:
            methods = methods or [_known(recipe, name)]
            methods[-1][name.removeprefix("--memory.")] = found
    if not methods:
        return rest
    given = {option.partition("=")[0] for option in rest}
    rest.append(f"--{TARGET}={json.dumps(methods)}")
    for method in as_memories(methods):
        wanted = {f"--trainer.{key}": value for key, value in method.trainer().items()}
        rest += [f"{name}={json.dumps(value)}" for name, value in wanted.items() if name not in given]
    return rest


def _known(recipe: Path | str, option: str) -> dict[str, Any]:
    """The one method of a recipe, which an option is for."""
    content = yaml.safe_load(recipe if isinstance(recipe, str) else recipe.read_text(encoding="utf-8"))
    known = value_at(content, TARGET.replace(".", ".init_args."))
    listed = known if isinstance(known, list) else [known]
    if len(listed) != 1 or not isinstance(listed[0], dict):
        raise ValueError(f"{option} is an option of which method? Name it first: --memory NAME {option} VALUE")
    return dict(listed[0])
