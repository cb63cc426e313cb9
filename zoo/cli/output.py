"""What commands write: lines, tables, JSON and errors."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # files of one picture
CLIPS = (".gif", *PICTURES)  # of clips: as they move, or a strip of their frames


def check_suffix(path: Path | None, suffixes: tuple[str, ...], what: str) -> None:
    """Raise a UsageError where the name of an output does not say that it is one of these files."""
    if path is not None and path.suffix.lower() not in suffixes:
        raise UsageError(f"--output of {what} must end in {', '.join(suffixes)}, got {path}")


def say(text: str, stderr: bool = False) -> None:
    """A line as it is: not wrapped, not coloured, without markup."""
    _console(stderr).print(text, soft_wrap=True)


def fail(message: str, code: int) -> int:
    """Say why on stderr; the exit code."""
    say(message, stderr=True)
    return code


def show(table: Table, whole: bool = False) -> None:
    """A table; where it is `whole`, or not a terminal that reads it, as wide as what it holds and never cut."""
    console = _console()
    if whole or not console.is_terminal:
        unlimited = console.options.update(width=sys.maxsize, max_width=sys.maxsize)
        console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table)


def show_metrics(metrics: Mapping[str, float]) -> None:
    """A table of scores."""
    from rich.table import Table

    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.6g}")
    show(table)


def show_json(value: Any) -> None:
    """Plain JSON: numbers that it has no words for are strings, "inf", "-inf" and "nan"."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
