"""`zoo bench`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib import import_module

HELP = "measure this machine beside the peers"
PARSER = {"add_help": False}
BENCHMARKS = ("families", "kernels", "layers", "loading", "recall", "resolution", "vision")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("subject", choices=BENCHMARKS)
    parser.set_defaults(overridable=True)


def run(known: Namespace) -> int:
    import_module(f"zoo.benchmarks.{known.subject}").main(known.overrides)
    return 0
