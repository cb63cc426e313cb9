"""The parser of all commands, and the way from arguments to an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import zoo
from zoo.cli.errors import UsageError, checked, how_to_install, one_line
from zoo.cli.imports import import_models
from zoo.cli.output import fail

# a module each, with HELP, `add_arguments(parser)`, `run(known)` and, where argparse needs more to be said, PARSER
COMMANDS = (
    "list", "info", "train", "eval", "predict", "export", "generate", "chat", "convert", "factorize", "quantize",
    "sparsify", "download", "cache", "push", "profile", "bench", "claims", "report",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for a wrong argument, 1 where training had to stop, 130 after Ctrl-C, and
    141 where what read the output has gone."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks: eval "$(register-python-argcomplete zoo)"
        from argcomplete import autocomplete  # pyright: ignore[reportMissingImports]

        autocomplete(parser)
    known, rest = parser.parse_known_args(arguments)
    if rest and not known.overridable:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    known.overrides = rest
    try:
        known.imports = [checked(import_models, source) for source in getattr(known, "imports", [])]
        return known.run(known)
    except UsageError as error:
        return fail(f"zoo {known.command}: error: {one_line(error)}", 2)
    except BrokenPipeError:  # who read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is not yet written goes nowhere
        return 141
    except ModuleNotFoundError as error:
        return fail(f"zoo {known.command}: error: {how_to_install(error)}", 2)


def build_parser() -> argparse.ArgumentParser:
    """`zoo` and its commands."""
    parser = argparse.ArgumentParser(prog="zoo", description="A zoo of efficient sequence and vision models.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {zoo.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = import_module(f"zoo.cli.{name}")
        subparser = commands.add_parser(name, help=command.HELP, **getattr(command, "PARSER", {}))
        subparser.set_defaults(run=command.run, overridable=False)
        command.add_arguments(subparser)
    return parser
