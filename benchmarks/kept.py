"""Result files to which a run adds what it has measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.benchmarks import common

RUN = "run"  # of a record of an earlier run: when, of which code and on how many threads it was measured


def held(name: str, part: str, also: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The records under ``part`` of a result file; none where there is no file.

    Args:
        also: what else of the file each of them gets, where it has none of its own.

    Returns:
        The records, each with the run that it is of.
    """
    path = common.RESULTS / f"{name}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    run = {field: content["machine"][field] for field in ("date", "commit", "threads")}
    return [{**{f: content[f] for f in also if f in content}, RUN: run, **record} for record in content.get(part, ())]


def joined(
    before: Iterable[Mapping[str, Any]], found: Iterable[Mapping[str, Any]], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Records of earlier runs, but those that have the keys of one of this run, and behind them this run's: what was
    measured together stands together, by keys that all of it shares."""
    new = [dict(record) for record in found]
    measured = {tuple(record[key] for key in keys) for record in new}
    return [dict(r) for r in before if tuple(r[key] for key in keys) not in measured] + new


def earlier_runs(records: Iterable[Mapping[str, Any]]) -> str:
    """What a file says of its records of earlier runs, a sentence a run; nothing where there are none."""
    runs = Counter((r[RUN]["date"], r[RUN]["commit"], r[RUN]["threads"]) for r in records if RUN in r)
    return "".join(
        f"Of the run of {date}, commit {commit}, {threads} threads: {count} rows. "
        for (date, commit, threads), count in sorted(runs.items())
    )
