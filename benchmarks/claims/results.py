"""The file of results: ``benchmarks/results/claims.json``, written whole after every claim.

.. code-block:: text

    {"schema": 1, "subject": "claims", "command": "zoo claims",   # of the last run
     "machine": {date, commit, processor, cores, threads, ..., packages},   # as of all results; of the last run
     "claims": [                     # every declared claim that was run or is out of reach, by name
        {"name", "families": [...], "paper": "2312.00752", "source", "says", "evidence", "measured", "value",
         "bound": {"at_least": 0.97, "at_most": null} or null, "bound_text": "≥ 0.97" or "-",
         "verdict": "met" | "missed" | "out of reach" | "failed",
         "found": 0.99 or null,      # the value that was compared with the bound
         "details": {...},           # what it comes from: numbers and strings, in dicts or lists
         "error": "..." or null,     # of a failed one: its last line
         "seconds": 1.2, "date", "commit", "sources", "processor", "threads"},   # when, where and of which code
     ]}

A claim that was measured by the same code (``sources``), on the same processor and threads, is not run again.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.benchmarks.claims.declare import EVIDENCE, Claim, declared
from zoo.benchmarks.common import SCHEMA, machine, markdown, save, write_result
from zoo.benchmarks.machine import date
from zoo.benchmarks.runner import DONE, Step, sources

ROOMS = ("kernels", "layers", "zoo", "train", "checkpoints", "benchmarks")
FAILED = "failed"
VERDICTS = ("met", "missed", "out of reach", FAILED)
COLUMNS = ["claim", "paper", "evidence", "bound", "found", "verdict", "seconds", "date", "commit"]
MISSED = ["claim", "what the paper says", "expected", "found"]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> record of the claims in a file of results; empty where there is none.

    Raises:
        ValueError: for a file that is not one of claims, or is of another schema.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): move it away, or write to another file") from error
    subject, schema = (content.get("subject"), content.get("schema")) if isinstance(content, dict) else (None, None)
    if (subject, schema) != ("claims", SCHEMA):
        raise ValueError(
            f"{path} must hold results of claims of schema {SCHEMA}, got subject {subject!r}, schema {schema!r}: "
            "move it away, or write to another file"
        )
    return {record["name"]: record for record in content["claims"]}


class Results:
    """Where ``run_steps`` keeps what it finds: all records in one file, or in none.

    Args:
        path: of the file; None: keep nothing.
        known: records of earlier runs, by name.
        command: that is run.
    """

    def __init__(self, path: Path | None, known: Mapping[str, dict[str, Any]], command: str) -> None:
        self.path, self.records, self.command, self.machine = path, dict(known), command, machine()
        self.added: dict[str, dict[str, Any]] = {}
        self.where = {
            "commit": self.machine["commit"], "sources": sources(*ROOMS), "processor": self.machine["processor"]
        }  # fmt: skip

    def state(self, claim: Claim) -> dict[str, Any] | None:
        """The record of a claim that need not be run: as it is declared now, by the same code at the same place."""
        record, place = self.records.get(claim.name), self.place(claim)
        same = ("sources", "processor", "threads")
        if record is None or record["verdict"] == FAILED or any(record[key] != place[key] for key in same):
            return None
        return record

    def place(self, claim: Claim) -> dict[str, Any]:
        """Where a claim is run, and of which code."""
        return self.where | {"threads": claim.threads(torch.get_num_threads())}

    def read(self, step: Step) -> dict[str, Any]:
        names, _ = step.arguments
        return {"status": DONE} if all(self.state(declared()[name]) for name in names) else {}

    def write(self, step: Step, status: str, seconds: float, found: dict[str, Any], error: str | None = None) -> None:
        names, _ = step.arguments
        for name in names:
            claim = declared()[name]
            if name in found and name not in self.added:
                self.add(claim, claim.verdict(found[name]["found"]), **found[name])
            elif name not in found and status not in ("running", DONE):
                self.add(claim, FAILED, seconds, error=error.splitlines()[-1] if error else None)

    def add(
        self, claim: Claim, verdict: str, seconds: float = 0.0, *, found: float | None = None,
        details: Mapping[str, Any] | None = None, error: str | None = None,
    ) -> None:  # fmt: skip
        """Keep the record of a claim, and write the file."""
        said = {f.name: getattr(claim, f.name) for f in dataclasses.fields(claim) if f.name not in UNSAID}
        bound = claim.bound and dataclasses.asdict(claim.bound)
        self.records[claim.name] = self.added[claim.name] = said | {
            "bound": bound, "bound_text": str(claim.bound or "-"), "verdict": verdict, "found": found,
            "details": details or {}, "error": error, "seconds": round(seconds, 2), "date": date(), **self.place(claim),
        }  # fmt: skip
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_result(self.path, self.content())

    def content(self) -> dict[str, Any]:
        """Of the file, with what others have written meanwhile; what is no longer declared has gone."""
        records = self.records if self.path is None else read(self.path) | self.added
        kept = [records[name] for name in sorted(declared()) if name in records]
        return {"subject": "claims", "command": self.command, "machine": self.machine, "claims": kept}

    def page(self) -> None:
        """The same as a page of markdown, beside the file."""
        assert self.path is not None
        content = self.content()
        kept = content["claims"]
        text = f"# What the papers say, rerun in miniature\n\n{counted(kept)}; last run: `{self.command}`. Evidence: "
        text += "; ".join(f"{kind}: {what}" for kind, what in EVIDENCE.items()) + ".\n\n"
        if wrong := [record for record in kept if record["verdict"] in ("missed", FAILED)]:
            text += markdown("Missed", MISSED, [missed(record) for record in wrong]) + "\n"
        text += markdown("Verdicts", COLUMNS, [row(record) for record in kept]) + "\n### Claims\n\n"
        text += "".join(f"- **{r['name']}** ({', '.join(r['families'])}): {said(r)}\n" for r in kept)
        save(self.path.stem, content, text, self.path.parent)


UNSAID = ("run", "bound", "quick", "limit", "shares")


def said(record: Mapping[str, Any]) -> str:
    """The claim in full."""
    text = f"{record['says']} Source: arXiv {record['paper']}, {record['source']}. {record['measured']}"
    if record["found"] is not None:
        text += f" {record['value'].capitalize()}: {figure(record['found'])} (expected {record['bound_text']})."
    return text + (f" {record['error']}" if record["error"] else "")


def row(record: Mapping[str, Any]) -> list[str]:
    """Of the table of verdicts."""
    return [
        record["name"], record["paper"], record["evidence"], record["bound_text"], figure(record["found"]),
        record["verdict"], f"{record['seconds']:.1f}", record["date"].partition(" ")[0], record["commit"] or "-",
    ]  # fmt: skip


def missed(record: Mapping[str, Any]) -> list[str]:
    """Of the table of what did not come out as the paper says."""
    found = record["error"] or f"{figure(record['found'])}: {record['value']}"
    return [record["name"], record["says"], record["bound_text"], found]


def figure(value: float | None) -> str:
    """As short as it may be."""
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"


def counted(records: Iterable[Mapping[str, Any]]) -> str:
    """ "40 met, 3 missed, 5 out of reach"."""
    found = Counter(record["verdict"] for record in records)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict])
