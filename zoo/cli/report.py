"""`zoo report`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import checked
from zoo.cli.options import add_import
from zoo.cli.output import say

HELP = "one page of what every model costs and scores, from the result files"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("site"), metavar="DIR", help="gets index.html (site)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="of result files (benchmarks/results)")
    parser.add_argument("--models", default="*", metavar="PATTERN", help="wildcards * ? [..], quoted (default: all)")
    add_import(parser)


def run(known: Namespace) -> int:
    from zoo.benchmarks.report.site import build

    page = checked(build, known.output, known.results, known.models)
    say(f"{page}: {page.stat().st_size / 1e6:.1f} MB, one file that needs nothing else")
    return 0
