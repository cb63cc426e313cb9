"""`zoo quantize`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_import, model_with_weights, saved
from zoo.cli.output import say

HELP = "compress the weights of a model to a few bits"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="a folder written by zoo.save_model, hf-hub:owner/repo, or a model's name")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--method", default="rtn", help="see zoo.quantize (default: rtn, round to nearest)")
    parser.add_argument("--bits", type=int, help="of a weight's code, 1 to 8 (default: 4, or as the layout has them)")
    parser.add_argument("--layout", default="int", help="what a code stands for (default: int); see zoo.quantize")
    parser.add_argument("--group-size", type=int, metavar="N", help="weights that share a scale (default: up to 32)")
    parser.add_argument("--symmetric", action=BooleanOptionalAction, default=False, help="no zeros are stored")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="weights that stay; repeatable")
    parser.add_argument(
        "--embeddings", action=BooleanOptionalAction, default=True, help="compress them, tied heads too"
    )
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the method; repeatable")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="a text in UTF-8, not the one to score on")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keeps what is done; the same command goes on")
    add_import(parser)


def run(known: Namespace) -> int:
    import zoo

    options = {"bits": known.bits, "layout": known.layout, "group_size": known.group_size, "symmetric": known.symmetric}
    options |= dict(map(_option, known.option))
    model = checked(model_with_weights, known.source, None)
    text = None if known.calibration is None else checked(_calibration, known.source, known.calibration)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(known.method, total=None)
        checked(
            zoo.quantize, model, known.method,
            calibration=text, skip=tuple(known.skip), embeddings=known.embeddings, folder=known.folder,
            progress=lambda done, total: progress.update(task, completed=done, total=total), **options,
        )  # fmt: skip
    checked(zoo.save_model, model, known.target)
    size = zoo.model_info(f"local-dir:{known.target}").bits_per_weight
    say(f"{known.target}: {size:.2f} bits a weight, by {known.method}")
    return 0


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--option must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _calibration(source: str, path: Path) -> Any:
    import zoo
    from zoo.quantize import Calibration

    return Calibration.of_text(zoo.load_tokenizer(saved(source)), path.read_text(encoding="utf-8"))
