"""Result files as the page reads them: all of one schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.benchmarks.common import SCHEMA


class Results:
    """The files of a folder, read and checked once; one that is not there is nothing measured.

    Args:
        folder: ``benchmarks/results``.

    Raises:
        FileNotFoundError: for a folder that is not there.
        ValueError: for a file that is no JSON object, or of another schema.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder of result files: `zoo bench` writes one, give --results")
        self.folder = folder
        self.files = {path.stem: _checked(path) for path in sorted(folder.glob("*.json"))}

    def records(self, name: str, key: str, *fields: str) -> list[dict[str, Any]]:
        """The list ``key`` of a file, each of whose entries has these fields; empty without the file.

        Raises:
            ValueError: for a file without them.
        """
        if name not in self.files:
            return []
        found = self.files[name].get(key)
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise ValueError(
                f"{self.folder / name}.json has no list {key!r}: it is of another schema, measure it again"
            )
        _require(self.folder / f"{name}.json", found, fields)
        return found

    def measured_on(self, name: str) -> str:
        """The machine and the day of a file, in a line; empty without the file or its machine."""
        here = self.files.get(name, {}).get("machine")
        if not here:
            return ""
        return f"{here['processor']}, {here['threads']} threads, commit {here['commit']}, {here['date']}"


def _checked(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    schema = found.get("schema", 1) if isinstance(found, dict) else "no object"  # the first files did not say it
    if schema != SCHEMA:
        raise ValueError(
            f"{path} is of schema {schema!r} and this version reads {SCHEMA}: measure it again by `zoo bench`"
        )
    return found


def _require(path: Path, entries: Sequence[dict[str, Any]], fields: Sequence[str]) -> None:
    for entry in entries:
        if missing := [field for field in fields if field not in entry]:
            raise ValueError(f"{path}: an entry lacks {', '.join(missing)}; it is of another schema, measure it again")
