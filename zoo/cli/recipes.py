"""Recipes by name or by file."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.imports import import_models
from zoo.cli.options import completed


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(Path(entry.name).stem for entry in _recipes().iterdir() if entry.name.endswith(".yaml"))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe, given by name or path.

    Raises:
        UsageError: there is neither.
    """
    for path in (Path(recipe), Path(str(_recipes() / f"{recipe}.yaml"))):
        if path.is_file():
            return path
    raise UsageError(f"no recipe {recipe!r}{near(recipe) or ':'} give a YAML file or a name of `zoo train --help`")


def near(name: str) -> str:
    """Recipes that a name may have meant: those that train a model of that name, or else the most alike."""
    from zoo.registry import nearest

    trained = [recipe for recipe in recipe_names() if recipe.endswith(f"_{name}")]
    return f", did you mean {' or '.join(map(repr, trained[:3]))}?" if trained else nearest(name, recipe_names())


def add_recipe(parser: ArgumentParser, help: str) -> None:
    """RECIPE."""
    completed(parser.add_argument("recipe", help=help), recipe_names)


def import_key(recipe: Path, imported: Sequence[str]) -> list[str]:
    """Import the models of a recipe's key `import`; an override of that key with these and those already imported.

    The configuration of a run says so what it needs. Nothing imports what a run folder names: a folder that came from
    elsewhere would run its code.

    Raises:
        UsageError: the recipe is no YAML, or what it names is not there.
    """
    import yaml

    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{recipe} is no YAML: {' '.join(str(error).split())}") from error
    named = content.get("import") or [] if isinstance(content, dict) else []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(source, str) for source in named):
        raise UsageError(f"{recipe}: import must name files or modules, got {named!r}")
    sources = [*imported, *(checked(import_models, source, recipe.parent) for source in named)]
    return [f"--import={json.dumps(list(dict.fromkeys(sources)))}"] if sources else []


def overrides_help() -> str:
    """What the help of a command says that takes a recipe."""
    return (
        "Any value of the recipe can be overridden: --model.lr 1e-3 --data.batch_size 32 --trainer.max_epochs 3 "
        "--trainer.strategy ddp --ema.decay 0.999. --print_config shows all of them. Recipes: "
        + ", ".join(recipe_names())
    )


def _recipes() -> Any:
    return files("zoo") / "train" / "recipes"
