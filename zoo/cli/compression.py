"""What the commands share that save a smaller model in another folder."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import model_with_weights, saved, text_of


def add_places(parser: ArgumentParser) -> None:
    """SOURCE, a model, and TARGET, where what is made of it is saved."""
    parser.add_argument("source", help="a folder written by zoo.save_model, hf-hub:owner/repo, or a model's name")
    parser.add_argument("target", type=Path, help="folder to write, which is not the source's; an earlier model goes")


def add_method_options(parser: ArgumentParser) -> None:
    """--option NAME=VALUE and --calibration PATH, of a method of compression."""
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the method; repeatable")
    parser.add_argument(
        "--calibration", type=Path, metavar="PATH", help="a text in UTF-8, or a folder of images, not those to score on"
    )


def begin(known: Namespace) -> tuple[Any, Any, str]:
    """The model of SOURCE in its final form, what it is calibrated on, and what is said of what TARGET holds.

    Raises:
        UsageError: as ``replaces`` and ``calibration`` have it, and for a source that is no model with weights.
    """
    import zoo

    earlier = checked(replaces, known.source, known.target)
    model = zoo.settle(checked(model_with_weights, known.source, None))
    return model, checked(calibration, known.source, model, known.calibration), earlier


def replaces(source: str, target: Path) -> str:
    """What is said where a target holds an earlier model, which goes as ``zoo.save_model`` has it; else nothing.

    Raises:
        ValueError: for a target that the source is, whose weights would be lost.
    """
    place = saved(source).removeprefix("local-dir:")
    if target.exists() and any(map(target.samefile, filter(Path.exists, (Path(source), Path(place))))):
        raise ValueError(f"{target} holds the source, whose weights would be lost: give another folder")
    return " (in place of an earlier model)" if (target / "config.json").exists() else ""


def method_options(known: Namespace) -> dict[str, Any]:
    """Those given, values as JSON where they are."""
    return dict(map(_option, known.option))


def calibration(source: str, model: Any, path: Path | None) -> Any:
    """Of a text and the tokenizer of a model, or of a folder of images; None without a path.

    Raises:
        ValueError: for a file where the model takes images, or the other way round, and for what is no text.
    """
    import zoo
    from zoo.quantize import Calibration

    if path is None:
        return None
    if path.is_dir():
        return Calibration.of_images(model, path)
    if hasattr(model, "pretrained_cfg"):
        raise ValueError(f"{type(model).__name__} takes images: --calibration must be a folder of them, got {path}")
    return Calibration.of_text(zoo.load_tokenizer(saved(source)), text_of(path))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--option must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
