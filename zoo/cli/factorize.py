"""`zoo factorize`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from zoo.cli.compression import add_places, replaces
from zoo.cli.errors import checked
from zoo.cli.options import add_import, model_with_weights
from zoo.cli.output import say

HELP = "put products of two narrow matrices in place of a model's matrices"


def add_arguments(parser: ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument(
        "--rank", type=_rank, required=True, help="of every product; below 1, of the largest that saves something"
    )
    parser.add_argument("--solver", default="svd", help="svd, random or nmf, see zoo.factorize (default: svd)")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="layers that stay; repeatable")
    add_import(parser)


def run(known: Namespace) -> int:
    import zoo

    earlier = checked(replaces, known.source, known.target)
    model = checked(model_with_weights, known.source, None)
    before = _count(model)
    checked(zoo.factorize, model, known.rank, known.solver, skip=tuple(known.skip))
    checked(zoo.save_model, model, known.target)
    say(f"{known.target}{earlier}: {_count(model):,} of {before:,} parameters, rank {known.rank:g} by {known.solver}")
    return 0


def _rank(text: str) -> int | float:
    value = float(text)
    return int(value) if value == int(value) else value


def _count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
