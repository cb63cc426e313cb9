"""`zoo quantize`."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path

from zoo.cli.compression import add_method_options, add_places, begin, method_options
from zoo.cli.errors import checked
from zoo.cli.options import add_import
from zoo.cli.output import say

HELP = "compress the weights of a model to a few bits"


def add_arguments(parser: ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument("--method", default="rtn", help="see zoo.quantize (default: rtn, round to nearest)")
    parser.add_argument("--bits", type=int, help="of a weight's code, 1 to 8 (default: 4, or as the layout has them)")
    parser.add_argument("--layout", default="int", help="what a code stands for (default: int); see zoo.quantize")
    parser.add_argument(
        "--group-size", type=int, metavar="N", help="weights that share a scale (default: 16 to 32, or a row)"
    )
    parser.add_argument("--symmetric", action=BooleanOptionalAction, default=False, help="no zeros are stored")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="weights that stay; repeatable")
    parser.add_argument(
        "--embeddings", action=BooleanOptionalAction, default=True, help="compress them, tied heads too"
    )
    add_method_options(parser)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keeps what is done; the same command goes on")
    add_import(parser)


def run(known: Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    import zoo

    options = {"bits": known.bits, "layout": known.layout, "group_size": known.group_size, "symmetric": known.symmetric}
    options |= method_options(known)
    model, seen, earlier = begin(known)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(known.method, total=None)
        checked(
            zoo.quantize, model, known.method,
            calibration=seen, skip=tuple(known.skip), embeddings=known.embeddings, folder=known.folder,
            progress=lambda done, total: progress.update(task, completed=done, total=total), **options,
        )  # fmt: skip
    checked(zoo.save_model, model, known.target)
    size = zoo.model_info(f"local-dir:{known.target}").bits_per_weight
    say(f"{known.target}{earlier}: {size:.2f} bits a weight, by {known.method}")
    return 0
