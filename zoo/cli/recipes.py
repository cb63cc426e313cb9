"""Recipes by name or by file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError


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
    raise UsageError(f"no recipe {recipe!r}: give a YAML file, or one of {', '.join(recipe_names())}")


def overrides_help() -> str:
    """What the help of a command says that takes a recipe."""
    return (
        "Any value of the recipe can be overridden: --model.lr 1e-3 --data.batch_size 32 --trainer.max_epochs 3 "
        "--trainer.strategy ddp --ema.decay 0.999. --print_config shows all of them. Recipes: "
        + ", ".join(recipe_names())
    )


def _recipes() -> Any:
    return files("zoo") / "train" / "recipes"
