"""`zoo train`."""

from __future__ import annotations

import errno
from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import checked
from zoo.cli.options import add_import
from zoo.cli.output import fail, say
from zoo.cli.recipes import add_recipe, import_key, recipe_path
from zoo.cli.train_help import Help

HELP = "train a model by a recipe"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
PARSER = {"add_help": False, "allow_abbrev": False}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-h", "--help", action=Help)
    add_recipe(parser, "a built-in recipe's name, or a YAML file")
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the run folder, if there is one")
    add_import(parser)
    parser.set_defaults(overridable=True)


def run(known: Namespace) -> int:
    recipe = recipe_path(known.recipe)
    output = known.output or Path("runs") / recipe.stem
    checked(_check_folder, output)
    from zoo.layers.quant import FrozenError
    from zoo.train.callbacks import NonFiniteError, Stopped
    from zoo.train.command import TrainingRun

    overrides = [*import_key(recipe, known.imports), *known.overrides]
    run = checked(TrainingRun, recipe, overrides, output, resume=known.resume)
    checked(run.prepare)  # data that is not there is the user's to mend; later errors are bugs
    try:
        run.fit()
    except FrozenError as error:
        return fail(f"zoo train: {error}", 2)
    except NonFiniteError as error:
        return fail(f"zoo train: {error}", 1)
    except Stopped as stopped:
        return fail(f"zoo train: {stopped}", stopped.status)
    except (OSError, RuntimeError) as error:
        if not _is_full(error):
            raise
        message = f"zoo train: {output} cannot be written: {error}; make room, and go on by --resume"
        return fail(message, 1)
    if run.trainer.is_global_zero:
        scores = (f"; {name} {value:.4g}" for name, value in run.scores().items())
        say(f"run folder {output}, model {output / 'model'}{''.join(scores)}")
    return 0


def _check_folder(output: Path) -> None:
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file: --output {output} must be a folder")


def _is_full(error: Exception) -> bool:
    """Whether a write found no room: said by the system, or by torch's writer of files."""
    return getattr(error, "errno", None) in FULL or (
        type(error) is RuntimeError and "PytorchStreamWriter" in str(error)
    )
