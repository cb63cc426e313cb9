"""A command of `zoo bench` that publishes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image


def published(
    monkeypatch: Any, folder: Path, bench: Any, *arguments: str
) -> tuple[dict[str, Any], dict[str, str], tuple[int, int]]:
    """The record of a bench, what was expected with its verdicts, and the size of its picture."""
    shown: list[Any] = []
    monkeypatch.setattr(bench, "publish", lambda *given, **more: shown.append((given, more)))
    bench.main([*arguments, "--no-save"])
    ((_, _, record, (_, _, rows), *_), more) = shown[0]
    more["plot"](folder / "made.png")
    assert more["before"].startswith("Expected") and rows
    with Image.open(folder / "made.png") as made:
        return record, {row[0]: row[2] for row in rows}, made.size
