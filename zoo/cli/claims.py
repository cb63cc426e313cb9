"""`zoo claims`."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from zoo.cli.errors import checked
from zoo.cli.options import add_json
from zoo.cli.output import say, show, show_json

HELP = "what the papers say, rerun in miniature: expectation, measurement, verdict"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="wildcards * ? [..], quoted (default: all)")
    parser.add_argument("--family", help="only claims about this family")
    parser.add_argument("--quick", action="store_true", help="only those that take seconds")
    parser.add_argument("--list", action="store_true", help="show the claims, run none")
    parser.add_argument("--fresh", action="store_true", help="run again what the results hold")
    parser.add_argument("--no-save", action="store_true", help="only print")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="of results (default: benchmarks/results/claims.json)"
    )
    add_json(parser)


def run(known: Namespace) -> int:
    from rich.table import Table

    from zoo.benchmarks.claims.command import Options, chosen
    from zoo.benchmarks.claims.command import run as measure
    from zoo.benchmarks.claims.results import COLUMNS, FAILED, counted, row
    from zoo.benchmarks.common import RESULTS, table

    path = None if known.no_save else known.output or RESULTS / "claims.json"
    options = Options(known.names, known.family, known.quick, known.fresh, path, _command(known))
    if known.list:
        claims = checked(chosen, options)
        if known.json:
            show_json([{"name": c.name, "families": c.families, "paper": c.paper, "says": c.says} for c in claims])
            return 0
        listed = Table("claim", "families", "paper", "evidence", "what it says", box=None, pad_edge=False)
        for one in claims:
            listed.add_row(one.name, " ".join(one.families), one.paper, one.evidence, one.says)
        show(listed, whole=True)
        return 0
    records = checked(measure, options, lambda line: say(line, stderr=True))
    if known.json:
        show_json(records)
    else:
        show(table(f"{len(records)} claims: {counted(records)}", COLUMNS, [row(record) for record in records]))
    return 1 if any(record["verdict"] == FAILED for record in records) else 0


def _command(known: Namespace) -> str:
    """What decides which claims are run."""
    family = ["--family", known.family] if known.family else []
    return shlex.join(["zoo", "claims", *known.names, *family, *(["--quick"] if known.quick else [])])
