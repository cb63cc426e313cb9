"""`zoo cache`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from zoo.cli.errors import UsageError, checked
from zoo.cli.output import say, show

HELP = "downloaded weights: list them, verify their hashes, or remove some"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "verify", "prune"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="prune these (default: what verify finds damaged)")


def run(known: Namespace) -> int:
    from rich.table import Table

    from zoo.checkpoints import download

    record = checked(download.record)
    if known.action == "list":
        table = Table("weights", "bytes", "sha256", "file")
        for entry in record.values():
            table.add_row(entry["name"], f"{entry['size']:,}", entry["sha256"][:12], entry["path"])
        show(table, whole=True)
        return 0
    damaged = [] if known.names else download.damaged()
    if known.action == "verify":
        for origin in damaged:
            say(f"damaged or gone: {record[origin]['name']}, {record[origin]['path']}")
        say(f"{len(record) - len(damaged)} of {len(record)} files are as they were recorded")
        return 1 if damaged else 0
    unknown = sorted(set(known.names) - {entry["name"] for entry in record.values()})
    if unknown:
        raise UsageError(f"nothing is recorded of {', '.join(unknown)}; `zoo cache list` shows what is")
    for origin in [o for o, entry in record.items() if o in damaged or entry["name"] in known.names]:
        checked(download.forget, origin)
        say(f"removed: {record[origin]['path']}")
    return 0
