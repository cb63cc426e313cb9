"""`zoo download`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from zoo.cli.errors import checked
from zoo.cli.output import say

HELP = "fetch published weights before they are needed"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="a model, model.tag or hf-hub:owner/repo[@revision]")


def run(known: Namespace) -> int:
    import zoo

    for name in known.names:
        say(f"{name}: {checked(zoo.prefetch, name)}")
    return 0
