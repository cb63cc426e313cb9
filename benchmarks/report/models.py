"""A row a model: what the registry and the counts say of it, and what the result files have measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

import zoo
from zoo.benchmarks.costs import kept, remembered
from zoo.benchmarks.report.results import Results
from zoo.checkpoints import bundled
from zoo.registry import ModelEntry, entries

BETTER_HIGH = ("accuracy", "dice")  # of other scores less is better
SCORES = {
    "bits_per_byte": "bits/byte", "bits_per_dim": "bits/dim", "accuracy": "accuracy", "dice": "Dice",
    "squared_error": "squared error",
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Of the weights that come with the package."""

    metric: str
    value: float
    data: str

    def __str__(self) -> str:
        value = f"{100 * self.value:.1f} %" if self.metric in BETTER_HIGH else f"{self.value:.4g}"
        return f"{value} {SCORES.get(self.metric, self.metric)}"


@dataclass(frozen=True)
class Row:
    """What is known of a model; None where nothing was counted or measured.

    Attributes:
        flops: of a forward pass, for each item that is read: token, vector or image.
        state: bytes that it remembers after ``state_tokens`` tokens, float32.
        growing: whether that grows with them.
        latency, step: seconds of a forward pass, and of a decoded token.
        throughput: items a second of a forward pass.
        memory: bytes at the same time at most in a forward pass, beside weights and inputs.
        measured: how these were.
    """

    entry: ModelEntry
    parameters: int
    active: int | None
    flops: float | None
    unit: str
    state: int | None
    state_tokens: int | None
    growing: bool | None
    latency: float | None = None
    step: float | None = None
    throughput: float | None = None
    memory: int | None = None
    measured: str = ""
    score: Score | None = None
    uncounted: str = ""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def kind(self) -> str:
        """For colours: what a longer text costs it, or that it reads something else."""
        if self.growing is None:
            return "other"
        return "growing" if self.growing else "constant"


def rows(results: Results, pattern: str = "*", *, count: bool = True) -> list[Row]:
    """Of every model that fits the pattern, in natural order.

    Args:
        count: what no file has counted, now; otherwise it is left out.

    Raises:
        ValueError: for a result file of another schema, or a pattern that no model fits.
    """
    names = zoo.list_models(pattern)
    if not names:
        raise ValueError(f"no model fits {pattern!r}; `zoo list` shows all")
    costs = kept(results.records("costs", "records", "name", "digest", "parameters"))
    times = measured(results)
    missing = [name for name in names if name not in costs] if count else []
    if missing:
        Console(stderr=True).print(f"{len(missing)} models are in no result file: counting them", highlight=False)
    for name in track(missing, "counting", console=Console(stderr=True), transient=True):
        costs |= remembered([name])
    return [_row(entries()[name], costs[name], times.get(name, {})) for name in names if name in costs]


def measured(results: Results) -> dict[str, dict[str, Any]]:
    """Name -> measure -> record of ``zoo bench NAME``, ours at batch 1; the smallest input where there are more."""
    found: dict[str, dict[str, Any]] = {}
    for record in results.records("models", "records", "model", "measure", "batch", "inputs", "items", "runs"):
        if record["batch"] == 1 and "zoo" in record["runs"]:
            found.setdefault(record["model"], {}).setdefault(record["measure"], record)
    return found


def _row(entry: ModelEntry, cost: Mapping[str, Any], times: Mapping[str, Any]) -> Row:
    state: list[Any] = cost.get("state") or [(None, None)]
    flops = cost["flops"] / cost["items"] if "flops" in cost else None
    row = Row(
        entry, cost["parameters"], cost.get("active_parameters"), flops, cost.get("unit", "item"), state[-1][1],
        state[-1][0], None if len(state) < 2 else state[-1][1] > 1.05 * state[-2][1], score=_score(entry.name),
        uncounted=cost.get("error", ""), **_times(times),
    )  # fmt: skip
    return row


def _times(times: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "forward" in times:
        record = times["forward"]
        latency = statistics.median(record["runs"]["zoo"])
        shape = " × ".join(map(str, record["inputs"]))
        found = {
            "latency": latency, "throughput": record["items"] / latency,
            "memory": record.get("bytes", {}).get("zoo"),
            "measured": f"forward of {shape}, median of {len(record['runs']['zoo'])}",
        }  # fmt: skip
    if "decode" in times:
        found["step"] = statistics.median(times["decode"]["runs"]["zoo"])
    return found


def _score(name: str) -> Score | None:
    known = bundled.index().get(name)
    return None if known is None else Score(known["metric"], known["value"], known["data"])
