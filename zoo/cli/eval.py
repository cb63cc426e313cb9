"""`zoo eval`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_image_reading, add_import, image_reading, model_with_weights
from zoo.cli.output import show_metrics
from zoo.cli.recipes import add_recipe, import_key, overrides_help, recipe_path

HELP = "evaluate by a recipe, or on a folder of images"
PARSER = {"epilog": overrides_help(), "allow_abbrev": False}


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe(
        parser,
        "a run folder; or a built-in recipe's name or a YAML file; with --images a model's name, or a folder with one",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="checkpoint, run folder or exported model")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="score a classifier on DIR/<split>/<class>/<image>, or DIR/<class>/"
    )
    parser.add_argument("--split", choices=("val", "test"), default="val", help="held-out data (default: val)")
    add_image_reading(parser)
    add_import(parser)
    parser.set_defaults(overridable=True)


def run(known: Namespace) -> int:
    if known.images is not None:
        return _images(known)
    folder = Path(known.recipe)
    recipe = None if folder.is_dir() else recipe_path(known.recipe)
    checkpoint = known.checkpoint or (folder if recipe is None else None)
    if checkpoint is None:
        raise UsageError("a recipe needs --checkpoint: a checkpoint, run folder or exported model")
    from zoo.train.command import EvaluationRun

    overrides = [*(import_key(recipe, known.imports) if recipe else ()), *known.overrides]
    run = checked(EvaluationRun, recipe, overrides, checkpoint)
    metrics = checked(run.evaluate, known.split)
    if run.trainer.is_global_zero:
        show_metrics(metrics)
    return 0


def _images(known: Namespace) -> int:
    if known.overrides:
        raise UsageError(f"with --images there is no recipe whose values {known.overrides} could override")
    from zoo.train.command import evaluate_images

    model = checked(model_with_weights, known.recipe, known.checkpoint)
    show_metrics(checked(evaluate_images, model, known.images, known.split, **image_reading(known)))
    return 0
