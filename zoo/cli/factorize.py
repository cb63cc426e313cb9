"""`zoo factorize`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from zoo.cli.errors import checked
from zoo.cli.options import add_import, add_target, model_with_weights, replaces
from zoo.cli.output import say

HELP = "put products of two narrow matrices in place of a model's matrices"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="a folder written by zoo.save_model, hf-hub:owner/repo, or a model's name")
    add_target(parser)
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
