"""What commands write: lines, tables, and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False) -> Console:
    """Where a command writes."""
    from rich.console import Console

    return Console(stderr=stderr)


def say(text: str, stderr: bool = False) -> None:
    """A line as it is: not wrapped, not coloured."""
    console(stderr).print(text, soft_wrap=True, highlight=False, markup=False)


def fail(message: str, code: int) -> int:
    """Say why on stderr; the exit code."""
    say(message, stderr=True)
    return code


def print_metrics(metrics: Mapping[str, float]) -> None:
    """A table of scores."""
    from rich.table import Table

    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.6g}")
    console().print(table)
