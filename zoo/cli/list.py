"""`zoo list`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from zoo.cli.errors import UsageError, checked
from zoo.cli.output import console

HELP = "names of models"


def add_arguments(parser: ArgumentParser) -> None:
    from zoo.registry import TASKS

    parser.add_argument("pattern", nargs="?", default="*", help="wildcards * ? [..], quoted (default: all)")
    parser.add_argument("--task", help=f"only this task: {', '.join(TASKS)}")
    parser.add_argument("--family", help="only this family")
    parser.add_argument("--params", action="store_true", help="also count parameters")


def run(known: Namespace) -> int:
    from rich.table import Table

    import zoo
    from zoo.registry import lookup

    names = checked(zoo.list_models, known.pattern, task=known.task, family=known.family)
    if not names:
        raise UsageError(f"no model fits {known.pattern!r} with these filters; `zoo list` shows all")
    table = Table("model", "family", "task")
    if known.params:
        table.add_column("parameters", justify="right")
    for name in names:
        count = [f"{zoo.model_info(name).num_parameters:,}"] if known.params else []
        table.add_row(name, lookup(name).family, lookup(name).task, *count)
    console().print(table)
    return 0
