"""`zoo info`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from zoo.cli.errors import checked
from zoo.cli.options import add_import, add_json, completed, model_names, saved
from zoo.cli.output import show, show_json

HELP = "what is known of a model"


def add_arguments(parser: ArgumentParser) -> None:
    name = parser.add_argument("name", help="a model's name, or a folder written by zoo.save_model")
    completed(name, model_names)
    add_json(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    from rich.table import Table

    import zoo

    info = checked(lambda: zoo.model_info(saved(known.name)))
    if known.json:
        show_json(asdict(info))
        return 0
    table = Table(show_header=False, title=info.name)
    for _ in ("field", "value", "meaning"):
        table.add_column(overflow="fold")
    table.add_row("task", info.task)
    table.add_row("family", info.family)
    table.add_row("paper", f"{info.paper.title} (arXiv:{info.paper.arxiv}, {info.paper.year})")
    table.add_row("parameters", f"{info.num_parameters:,}")
    if info.bits_per_weight is not None:
        table.add_row("bits a weight", f"{info.bits_per_weight:.2f}")
    for tag, found in info.weights.items():
        tokenizer = "" if found.tokenizer is None else f"; tokenizer: {found.tokenizer}"
        table.add_row("weights", tag, f"licence: {found.licence}{tokenizer}")
    if not info.weights:
        table.add_row("weights", "none")
    table.add_section()
    for field, value in info.config.items():
        table.add_row(field, str(value), info.options.get(field, ""))
    show(table)
    return 0
