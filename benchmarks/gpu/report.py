"""What the steps found, as tables: what is wrong first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.benchmarks.gpu.operations import RIGHT
from zoo.benchmarks.runner import DONE

Record = Mapping[str, Any]


def report(records: Sequence[Record]) -> str:
    """A page of Markdown."""
    by_kind = {kind: [r for r in records if r["name"].partition(" ")[0] == kind] for kind in KINDS}
    machine = next((r["found"] for r in by_kind["machine"]), {})
    lines = ["# On a GPU", "", "; ".join(f"{k} {v}" for k, v in machine.items() if not isinstance(v, dict)), ""]
    lines += _table("Not done", ("step", "status", "why"), _unfinished(records))
    lines += _table("Wrong", ("case", "inputs", "error"), _wrong(by_kind["right"]))
    right = sum(found == RIGHT for r in by_kind["right"] for found in r["found"].values())
    lines += [f"Right: {right} comparisons of {len(by_kind['right'])} cases with float64.", ""]
    columns = ("operation", "inputs", "ms", "of roofline", "others' time / ours")
    lines += _table("Operations", columns, _fast(by_kind["fast"], machine.get("peaks", {})))
    lines += _table("Models", ("model", "measure", "value"), _plain(by_kind["model"]))
    lines += _table("Block sizes", ("kernel", "gain", "sizes"), _tuned(by_kind["tuned"]))
    return "\n".join(lines)


def blocks(records: Sequence[Record], place: str) -> dict[str, Any]:
    """The part of `kernels/blocks.json` that tuning has changed."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for found in (r["found"] for r in records if r["name"].startswith("tuned ")):
        for kernel, result in found.items():
            operation, _, shape_class = kernel.partition(" ")
            changed = {k: v for k, v in result["sizes"].items() if v != result["default"].get(k)}
            if changed:
                table.setdefault(operation, {})[shape_class] = changed
    return {place: table} if table else {}


KINDS = ("machine", "right", "fast", "model", "tuned")


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = [f"| {' | '.join(row)} |" for row in rows]
    head = [f"## {title}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return [*head, *body, ""] if body else []


def _unfinished(records: Sequence[Record]) -> Iterable[Sequence[str]]:
    return [
        (r["name"], r["status"], (r.get("error") or "").splitlines()[-1] if r.get("error") else "")
        for r in records
        if r.get("status") != DONE
    ]


def _wrong(records: Sequence[Record]) -> Iterable[Sequence[str]]:
    return [(_of(r), key, found) for r in records for key, found in r["found"].items() if found != RIGHT]


def _fast(records: Sequence[Record], peaks: Mapping[str, float]) -> Iterable[Sequence[str]]:
    for r in records:
        for key, found in r["found"].items():
            ours = found.get("zoo")
            if not isinstance(ours, float):
                yield _of(r), key, str(ours), "", ""
                continue
            limits = [found.get(k, 0) / peaks[p] for k, p in (("bytes", "bytes/s"), ("flops", "FLOP/s")) if peaks]
            bound = max(limits, default=0)
            others = {side: t for side, t in found.items() if side not in ("zoo", "bytes", "flops", "implementation")}
            ratios = [
                f"{side} {t / ours:.2f}" if isinstance(t, float) else f"{side} failed" for side, t in others.items()
            ]
            yield _of(r), key, f"{ours * 1e3:.3f}", f"{bound / ours:.0%}" if bound else "", ", ".join(ratios)


def _plain(records: Sequence[Record]) -> Iterable[Sequence[str]]:
    for r in records:
        for key, value in r["found"].items():
            yield _of(r), key, f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def _tuned(records: Sequence[Record]) -> Iterable[Sequence[str]]:
    return [
        (kernel, f"{found['before'] / found['after']:.2f}", ", ".join(f"{k} {v}" for k, v in found["sizes"].items()))
        for r in records
        for kernel, found in r["found"].items()
        if found["sizes"] != found["default"]
    ]


def _of(record: Record) -> str:
    return record["name"].partition(" ")[2]
