"""`zoo sparsify`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from zoo.cli.compression import add_method_options, add_places, begin, method_options
from zoo.cli.errors import checked
from zoo.cli.options import add_import
from zoo.cli.output import say

HELP = "keep a share of the weights of a model"


def add_arguments(parser: ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument("--method", default="magnitude", help="see zoo.sparsify (default: magnitude)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="share that goes, or is not read (default: 0.5)")
    parser.add_argument("--pattern", help="unstructured, row, or n:m such as 2:4 (default: the method's)")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="weights that stay; repeatable")
    parser.add_argument("--head", action="store_true", help="prune the head too")
    add_method_options(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    import zoo
    from zoo.layers.quant import stored_bytes

    model, seen, earlier = begin(known)
    before = stored_bytes(model)
    checked(
        zoo.sparsify, model, known.method, sparsity=known.sparsity, pattern=known.pattern, calibration=seen,
        skip=tuple(known.skip), head=known.head, **method_options(known),
    )  # fmt: skip
    checked(zoo.save_model, model, known.target)
    say(f"{known.target}{earlier}: {stored_bytes(model):,} of {before:,} bytes, by {known.method}")
    return 0
