"""The models of ``zoo bench cache``: what their recipes say, with weights that come with the package.

    python -m zoo.benchmarks.cache_models --runs DIR     # trains what DIR lacks, and packs all of them

Their recipes state how well they do; a file is packed as those of ``zoo.checkpoints.bundled``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import zoo
from zoo.benchmarks.lessons import FOLDER, keep
from zoo.checkpoints import bundled, read_state_dict
from zoo.cli import recipe_path

RECIPES = ("sessions_transformer", "sessions_falcon_h1")


def packed() -> list[str]:
    """The recipes whose weights are there."""
    return [recipe for recipe in RECIPES if (FOLDER / f"{recipe}.safetensors").exists()]


def build(recipe: str) -> Any:
    """The model of a recipe, with random weights."""
    asked = yaml.safe_load(recipe_path(recipe).read_text(encoding="utf-8"))["model"]["init_args"]
    return zoo.create_model(asked["model"], **asked["model_args"])


def trained(recipe: str) -> Any:
    """With those that come with the package."""
    model = build(recipe)
    file = FOLDER / f"{recipe}.safetensors"
    zoo.load_weights(model, bundled.unpack(read_state_dict(file)), str(file))
    return model.eval()


def pack(recipe: str, run: Path) -> None:
    """Write the weights of a run of the recipe, after it was run where the folder holds none."""
    if not (run / "model" / "config.json").exists():
        from zoo.train.command import TrainingRun

        TrainingRun(recipe_path(recipe), [], run).fit()
    keep(read_state_dict(run / "model"), FOLDER / f"{recipe}.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("zoo.benchmarks.cache_models", description="Train the models of `zoo bench cache`")
    parser.add_argument("names", nargs="*", default=RECIPES, metavar="RECIPE", help="default: all of them")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    options = parser.parse_args(arguments)
    for recipe in options.names:
        pack(recipe, options.runs / recipe)


if __name__ == "__main__":
    main()
