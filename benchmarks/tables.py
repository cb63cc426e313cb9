"""Tables for the terminal and as markdown, and figures of several panels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

Shown = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, columns and rows of a table


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal: the first column names, the others are figures."""
    shown = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*row)
    return shown


def markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as markdown."""
    lines = [f"### {title}", "", "| " + " | ".join(columns) + " |"]
    lines.append("| --- |" + " ---: |" * (len(columns) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


class Verdict(NamedTuple):
    """What was expected, by whom, and what was found."""

    says: str
    found: str
    met: bool


def show_verdicts(verdicts: Sequence[Verdict]) -> Shown:
    """A row an expectation."""
    rows = [[one.says, one.found, "met" if one.met else "missed"] for one in verdicts]
    return "What was expected", ["expected", "found", ""], rows


@contextmanager
def panels(path: Path, rows: int, columns: int, size: tuple[float, float], dpi: int = 110) -> Iterator[Any]:
    """Axes (rows, columns) of a figure that is written to a file at the end.

    Args:
        size: width and height in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    try:
        yield axes
        figure.savefig(path, dpi=dpi)
    finally:
        pyplot.close(figure)
