"""`zoo info`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from zoo.cli.errors import checked
from zoo.cli.output import console

HELP = "what is known of a model"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name")


def run(known: Namespace) -> int:
    from rich.table import Table

    import zoo

    info = checked(zoo.model_info, known.name)
    table = Table(show_header=False, title=info.name)
    table.add_row("task", info.task)
    table.add_row("family", info.family)
    table.add_row("paper", f"{info.paper.title} (arXiv:{info.paper.arxiv}, {info.paper.year})")
    table.add_row("parameters", f"{info.num_parameters:,}")
    table.add_row("weights", ", ".join(info.tags) or "none")
    table.add_section()
    for field, value in info.config.items():
        table.add_row(field, str(value))
    console().print(table)
    return 0
