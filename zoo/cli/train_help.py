"""`zoo train --help`: the usual, and what its registries hold, which only this imports; of a recipe, what it sets."""

from __future__ import annotations

import argparse
import textwrap
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError
from zoo.cli.recipes import overrides_help, recipe_path


class Help(Action):
    """-h, --help."""

    def __init__(self, option_strings: Sequence[str], dest: str = argparse.SUPPRESS, **_: Any):
        help = "show this help message; behind RECIPE, of that recipe"
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: Any = None) -> None:
        recipe = getattr(namespace, "recipe", None)
        paragraphs = [*methods(), overrides_help()]
        if recipe is not None:
            try:
                paragraphs = [*methods(), *of_recipe(recipe_path(recipe))]
            except UsageError as error:
                parser.error(str(error))
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "\n\n".join(textwrap.fill(one, 100, break_long_words=False) for one in paragraphs)
        parser.print_help()
        parser.exit()


def methods() -> Iterator[str]:
    """A sentence for each option that takes a name, with all names."""
    from zoo.adapt import ADAPTERS
    from zoo.masks import SPARSITIES
    from zoo.train.memory import MEMORIES
    from zoo.train.parallel import STRATEGIES

    for said, option, names in (
        ("Tune few numbers (or FOLDER, to go on with one)", "adapter", ADAPTERS),
        ("Train in less memory (repeatable)", "memory", MEMORIES),
        ("Train with sparse weights", "sparsity", SPARSITIES),
    ):
        yield f"{said}: --{option} NAME --{option}.OPTION VALUE, with NAME one of {', '.join(sorted(names))}."
    yield f"Over several processes: --trainer.strategy NAME, Lightning's (such as ddp) or {', '.join(STRATEGIES)}."


def of_recipe(path: Path) -> Iterator[str]:
    """What a recipe says of itself, what it sets, and how to see all that can be set.

    Raises:
        UsageError: it is no YAML.
    """
    import yaml

    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    name = path.stem
    said = [line.lstrip("# ") for line in text.splitlines()[:12] if line.startswith("#")]
    yield f"{name}: {' '.join(said)}"
    yield f"It sets: {' '.join(f'--{key}={value}' for key, value in _flat(content or {}, ''))}"
    yield f"`zoo train {name} --print_config` shows all that can be set, with its values."


def _flat(content: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Options as on a command line: those of a class by the name of the argument that it is given for."""
    if not isinstance(content, dict):
        yield key, content
        return
    for name, value in content.items():
        within = key if name == "init_args" else f"{key}.{name}".lstrip(".")
        if name == "class_path":
            yield key, value
        else:
            yield from _flat(value, within)
