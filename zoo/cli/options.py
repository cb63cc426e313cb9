"""Arguments that several commands share, each written once."""

from __future__ import annotations

import os
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_model(parser: ArgumentParser) -> None:
    """MODEL: a folder, or a name with weights."""
    help = "a folder written by zoo.save_model, a run folder, hf-hub:owner/repo, or a model's name"
    completed(parser.add_argument("model", help=help), model_names)


def add_checkpoint(parser: ArgumentParser) -> None:
    """--checkpoint FILE."""
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="weights of a named model, or a folder of an adapter"
    )


def add_import(parser: ArgumentParser) -> None:
    """--import FILE, as often as one likes."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file or module that registers models of your own (zoo.register_model); repeatable",
    )


def add_json(parser: ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def seed(text: str) -> int:
    """A seed that every generator takes."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise ArgumentTypeError(f"a seed must be at least 0 and below 2^63, got {text}")
    return value


def count(text: str) -> int:
    """A number of things, of which there is one at least."""
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def new_file(text: str) -> Path:
    """A file that can be written, where its folder is."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentTypeError(f"must be a file in a folder that is there, got {text}")
    return path


def completed(action: Action, names: Callable[[], list[str]]) -> None:
    """Let argcomplete offer these names for an argument."""
    action.completer = lambda **_: names()  # type: ignore[attr-defined]


def model_names() -> list[str]:
    """Names of all models."""
    import zoo

    return zoo.list_models()


def saved(model: str) -> str:
    """A model's name; of a saved model's folder, or of the run folder around it, `local-dir:FOLDER`.

    Raises:
        FileNotFoundError: for a path where there is no folder.
    """
    path = Path(model)
    if model and path.is_dir():
        return f"local-dir:{path if (path / 'config.json').exists() else _exported(path)}"
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    is_path = any(separator in model for separator in separators) or model.startswith(".") or (model and path.exists())
    if is_path and ":" not in model:
        raise FileNotFoundError(f"{model} is {'no folder' if path.exists() else 'not there'}: {WANTED}")
    return model


def model_with_weights(model: str, checkpoint: Path | None) -> Any:
    """A folder's model, or a named one with the weights of a file or the published ones; on either an adapter where
    the checkpoint is a folder of one."""
    import zoo
    from zoo.adapt.files import is_adapter

    name = saved(model)
    placed = ":" in name  # in a folder or a repository, with its weights
    if checkpoint is not None and is_adapter(checkpoint):
        return zoo.create_model(name, pretrained=not placed, adapter=checkpoint)
    return zoo.create_model(name, pretrained=not placed and checkpoint is None, checkpoint_path=checkpoint)


def text_of(path: Path) -> str:
    """What a file holds.

    Raises:
        ValueError: for what is no text in UTF-8. OSError: for a file that is not there.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}") from error


WANTED = "give a folder written by zoo.save_model, or a model's name (`zoo list`)"


def _exported(run: Path) -> Path:
    """Where a run leaves its model; the folder itself where there is none, for the error."""
    return run / "model" if (run / "model" / "config.json").exists() else run


def add_image_reading(parser: ArgumentParser) -> None:
    """How images are read, given on by ``image_reading``."""
    parser.add_argument("--exif-orientation", action="store_true", help="turn images as the camera was held")
    parser.add_argument("--skip-bad-images", action="store_true", help="warn of images that cannot be read, and go on")


def image_reading(known: Namespace) -> dict[str, bool]:
    """The options of ``add_image_reading`` as arguments of ``zoo.predict`` and of image data."""
    return {"exif_orientation": known.exif_orientation, "skip_bad_images": known.skip_bad_images}
