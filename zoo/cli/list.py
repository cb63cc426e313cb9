"""`zoo list`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from zoo.cli.errors import UsageError, checked
from zoo.cli.options import add_import, add_json
from zoo.cli.output import show, show_json
from zoo.tasks import TASKS

HELP = "names of models, or of cache policies"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="wildcards * ? [..], quoted (default: all)")
    parser.add_argument("--task", help=f"only this task: {', '.join(TASKS)}")
    parser.add_argument("--family", help="only this family")
    parser.add_argument("--pretrained", action="store_true", help="only models with published or bundled weights")
    parser.add_argument("--params", action="store_true", help="also count parameters")
    parser.add_argument(
        "--steps", action="store_true",
        help="language models alone, each is built: whether decoding on the CPU runs as programs of C, or why not",
    )  # fmt: skip
    parser.add_argument("--caches", action="store_true", help="cache policies of `zoo generate --cache` instead")
    add_json(parser)
    add_import(parser)


def run(known: Namespace) -> int:
    from rich.table import Table

    import zoo

    if known.caches:
        return _caches(known.json)
    filters = {
        "task": "language" if known.steps else known.task,
        "family": known.family,
        "pretrained": known.pretrained or None,
    }
    names = checked(zoo.list_models, known.pattern, **filters)
    if not names:
        raise UsageError(f"no model fits {known.pattern!r} with these filters; `zoo list` shows all")
    rows = [_row(name, known.params, known.pretrained, known.steps) for name in names]
    if known.json:
        show_json(rows)
        return 0
    table = Table("model", "family", "task", box=None, pad_edge=False)
    if known.params:
        table.add_column("parameters", justify="right")
    if known.steps:
        table.add_column("decoding step")
    for column in ("weights", "licence", "tokenizer") if known.pretrained else ():
        table.add_column(column)
    for row in rows:
        count = [f"{row['num_parameters']:,}"] if known.params else []
        count += [row["step"]] if known.steps else []
        for tag, found in row.get("weights", {"": {}}).items():
            more = [tag, found["licence"], found["tokenizer"] or "-"] if known.pretrained else []
            table.add_row(row["name"], row["family"], row["task"], *count, *more)
    show(table, whole=True)
    return 0


def _caches(as_json: bool) -> int:
    """Cache policies, with what they do and their papers."""
    from rich.table import Table

    from zoo.layers.cache.names import policies

    rows = [
        {
            "name": name,
            "policy": " ".join(str(one.__doc__).split("\n\n")[0].replace("``", "").split()),
            "paper": one.paper,
        }
        for name, one in policies().items()
    ]
    if as_json:
        show_json(rows)
        return 0
    table = Table("cache", "what is kept", "arXiv", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], row["policy"], row["paper"])
    show(table, whole=True)
    return 0


def _row(name: str, params: bool, weights: bool, steps: bool) -> dict:
    import zoo
    from zoo.registry import lookup

    entry = lookup(name)
    row = {"name": name, "family": entry.family, "task": entry.task, "tags": entry.tags}
    if params:
        row["num_parameters"] = zoo.model_info(name).num_parameters
    if steps:
        from zoo.layers.step import obstacle

        reason = obstacle(zoo.create_model(name).eval())
        row["step"] = "program" if reason is None else f"layer by layer: {reason}"
    if weights:
        row["weights"] = {tag: asdict(found) for tag, found in entry.weights.items()}
    return row
