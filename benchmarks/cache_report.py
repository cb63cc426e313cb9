"""The tables, the plot and the page of ``zoo bench cache``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.benchmarks.cache_claims import Record, means
from zoo.benchmarks.cache_methods import AS_POLICY, KINDS, UNBUDGETED, kind_of
from zoo.benchmarks.tables import panels

Table = tuple[str, list[str], list[list[str]]]
QUESTIONS = ("first", "second")


def tables(found: dict[str, Any]) -> list[Table]:
    """All of them: what became of what was expected first."""
    judged = [[v["expected"], ", ".join(v["missed"]) or "none", str(len(v["tried"]))] for v in found["verdicts"]]
    verdicts = "What became of it", ["expected", "missed by", "of"], [row for row in judged if row[-1] != "0"]
    return [
        verdicts,
        *accuracy_tables(found["accuracy"]),
        *time_tables(found["time"]),
        *memory_tables(found["memory"]),
    ]


def accuracy_tables(records: Sequence[Record]) -> list[Table]:
    """A table a model: the means over the tasks at each budget, "first / second", and what the last budget holds."""
    found = []
    for recipe, own in _by_model(records).items():
        budgets = sorted({r["budget"] for r in own})
        by_budget = {budget: means(own, recipe, budget) for budget in budgets}
        last = f"at {budgets[-1]}"
        rows = []
        for record in (r for r in own if r["budget"] == budgets[-1]):
            method, each = record["method"], record["answered"]
            whole = ["-"] * (len(budgets) - 1) if method in UNBUDGETED else None
            means_of = [percent(by_budget[b][method]) for b in budgets]
            rows.append([
                method, kind_of(method), *((whole or means_of[:-1]) + means_of[-1:]),
                *(percent(answered) for answered in each.values()), f"{record['slots']:.0f}", f"{record['bytes']:,}",
            ])  # fmt: skip
        tasks = [f"{name}, {last}" for name in own[0]["answered"]]
        columns = ["method", "kind", *(f"budget {b}" for b in budgets), *tasks]
        title = f"{recipe}: answers to the first / second question, %"
        found.append((title, [*columns, f"slots held, {last}", f"bytes, {last}"], rows))
    return found


def percent(shares: Sequence[float]) -> str:
    """Of both questions."""
    return " / ".join(f"{100 * share:.0f}" for share in shares)


def time_tables(records: Sequence[Record]) -> list[Table]:
    """A table a model."""
    found = []
    for recipe, own in _by_model(records).items():
        dense = next(r for r in own if r["method"] == AS_POLICY)
        rows = [
            [r["method"]] + [f"{r[key] / unit:.2f}" for key in ("prefill_ms", "step_ms") for unit in (1, dense[key])]
            for r in own
        ]
        one = own[0]
        title = f"{recipe}: {one['length']:,} tokens, then {one['steps']} steps, one sequence, budget {one['budget']}"
        found.append((title, ["method", "prefill, ms", f"of {AS_POLICY}", "step, ms", f"of {AS_POLICY}"], rows))
    return found


def memory_tables(records: Sequence[Record]) -> list[Table]:
    """One table, if it was measured."""
    if not records:
        return []
    one = records[0]
    rows = [
        [r["method"], f"{r['most_in_prefill']:,}", f"{r['slots']:,}", f"{r['bytes']:,}", f"{r['bytes_of_budget']:.3f}",
         f"{r['dense_bytes']:,}", f"{r['seconds']:.1f}"]
        for r in records
    ]  # fmt: skip
    title = f"{one['length']:,} tokens in chunks of {one['chunk']}, then {one['steps']} steps, budget {one['budget']:,}"
    columns = ["method", "most slots in prefill", "slots after", "bytes", "of the budget's", "dense, bytes", "seconds"]
    return [(title, columns, rows)]


def plot(records: Sequence[Record], path: Path) -> None:
    """A row a model; the first and the second question over the budget, and the second over bytes. A colour a kind."""
    models = _by_model(records)
    with panels(path, len(models), len(QUESTIONS) + 1, (19, 5.5 * len(models)), dpi=80) as axes:
        for row, (recipe, own) in zip(axes, models.items(), strict=True):
            budgets = sorted({r["budget"] for r in own})
            accuracies = {budget: means(own, recipe, budget) for budget in budgets}
            size = {(r["method"], r["budget"]): r["bytes"] for r in own}
            for column, axis in enumerate(row):
                question = min(column, len(QUESTIONS) - 1)
                axis.axhline(100 * accuracies[budgets[-1]]["dense"][question], color="black", label="dense")
                if column == len(QUESTIONS):
                    axis.axvline(size["dense", budgets[-1]], color="black")
                for color, names in enumerate(KINDS.values()):
                    for index, name in enumerate(name for name in names if name in accuracies[budgets[-1]]):
                        own_budgets = [budget for budget in budgets if (name, budget) in size]
                        across = [size[name, b] for b in own_budgets] if column == len(QUESTIONS) else own_budgets
                        points = [100 * accuracies[budget][name][question] for budget in own_budgets]
                        style = {"marker": "ovs^Dx*P+"[index % 9], "linestyle": "--" if index % 2 else "-"}
                        axis.plot(across, points, color=f"C{color}", linewidth=1, label=name, **style)
                axis.set(title=f"{recipe}, {QUESTIONS[question]} question", ylim=(-3, 103))
                axis.set_ylabel("answered, mean of the tasks, %")
                axis.set_xlabel("bytes held" if column == len(QUESTIONS) else "tokens held or seen")
                if column < len(QUESTIONS):
                    axis.set_xticks(budgets)
        axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _by_model(records: Sequence[Record]) -> dict[str, list[Record]]:
    return {name: [r for r in records if r["model"] == name] for name in dict.fromkeys(r["model"] for r in records)}
