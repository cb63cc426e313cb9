"""`zoo eval`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_image_reading, add_import, add_json, image_reading, model_with_weights, saved, text_of
from zoo.cli.output import show_json, show_metrics
from zoo.cli.recipes import add_recipe, import_key, overrides_help, recipe_path

HELP = "evaluate by a recipe, on a folder of images, on a text, or on tasks of lm-eval"
PARSER = {"epilog": overrides_help(), "allow_abbrev": False}


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe(
        parser,
        "a run folder; or a built-in recipe's name or a YAML file; with --images, --text or --tasks a model's name, or "
        "a folder with one",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="checkpoint, run folder or exported model")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="score a classifier on DIR/<split>/<class>/<image>, or DIR/<class>/"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="bits a byte of a text in UTF-8")
    parser.add_argument(
        "--window", type=int, default=1024, metavar="N", help="--text: tokens at a time (default: 1024)"
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="--text: windows that start afresh, N tokens after one another (default: the state is carried on)",
    )
    parser.add_argument("--tasks", metavar="NAME,...", help="tasks or groups of lm-eval; wildcards are allowed")
    parser.add_argument("--tasks-path", type=Path, metavar="DIR", help="--tasks: a folder with further tasks as YAML")
    parser.add_argument("--limit", type=int, metavar="N", help="--tasks: documents of each task")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="--tasks: examples in each prompt")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="--tasks: rows at a time (default: 16)")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="--tasks: answers so far; the same command goes on")
    add_json(parser)
    parser.add_argument("--split", choices=("val", "test"), default="val", help="held-out data (default: val)")
    add_image_reading(parser)
    add_import(parser)
    parser.set_defaults(overridable=True)


def run(known: Namespace) -> int:
    ways = {"images": _images, "text": _text, "tasks": _tasks}
    if given := [way for way in ways if getattr(known, way) is not None]:
        if known.overrides:
            raise UsageError(f"with --{given[0]} there is no recipe whose values {known.overrides} could override")
        if len(given) > 1:
            raise UsageError(f"give one of --{' and --'.join(given)}")
        return ways[given[0]](known)
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
    from zoo.train.command import evaluate_images

    model = checked(model_with_weights, known.recipe, known.checkpoint)
    show_metrics(checked(evaluate_images, model, known.images, known.split, **image_reading(known)))
    return 0


def _text(known: Namespace) -> int:
    import zoo

    text = checked(text_of, known.text)
    model = checked(model_with_weights, known.recipe, known.checkpoint)
    tokenizer = checked(zoo.load_tokenizer, saved(known.recipe))
    score = checked(zoo.score_text, model, tokenizer, text, window=known.window, stride=known.stride)
    metrics = {
        "bits_per_byte": score.bits_per_byte,
        "perplexity": score.perplexity,
        "tokens": score.tokens,
        "bytes": score.num_bytes,
    }
    if known.json:
        show_json(metrics)
    else:
        show_metrics(metrics)
    return 0


def _tasks(known: Namespace) -> int:
    from zoo.integrations.lm_eval import ZooLM, evaluate

    model = checked(
        ZooLM,
        saved(known.recipe),
        checkpoint=None if known.checkpoint is None else str(known.checkpoint),
        batch_size=known.batch_size,
    )
    scores = checked(
        evaluate,
        model,
        known.tasks.split(","),
        include_path=known.tasks_path,
        num_fewshot=known.num_fewshot,
        limit=known.limit,
        cache=known.cache,
    )
    if known.json:
        show_json(scores)
    else:
        show_metrics({f"{task} {metric}": value for task, found in scores.items() for metric, value in found.items()})
    return 0
