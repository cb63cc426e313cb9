"""Idealised runtime, measured: a law fitted to a few lengths, judged by lengths and queries that it has not seen.

    zoo bench runtime                            # writes benchmarks/results/runtime.{json,md}; two minutes
    zoo bench runtime --models mamba2_nano --no-save

Prompts and single steps of the fitted lengths are measured; those held out lie between and beyond them. A query is a
prompt and the steps after it, measured as one. Expectation (Narayanan et al., arXiv 2305.02440, give a closed form of a
prompt's and a token's terms; the bound is ours): within 15 % inside the fitted lengths; beyond them the terms must
carry it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

import zoo
from zoo.benchmarks.common import command_line, in_processes, publish
from zoo.layers.step import programmed
from zoo.profile.measure import seconds
from zoo.profile.runtime import Runtime, idealised_runtime
from zoo.profile.sample import sample

MODELS = ("transformer_nano", "mamba2_nano", "deepseek_nano", "transformer_130m", "mamba2_130m")
LENGTHS, HELD_OUT = (32, 64, 128, 256), (48, 96, 192, 384)
QUERIES = ((64, 32), (160, 64))  # prompt, new
EXPECTED = 0.15


@torch.no_grad()
def query(model: Any, prompt: int, new: int, runs: int) -> float:
    """Median seconds of a prompt and new - 1 steps."""
    tokens = sample(model, 1, prompt)

    def call() -> None:
        state = model.init_state(1, prompt + new)
        model(tokens, state, logits_to_keep=1)
        for _ in range(new - 1):
            model(tokens[:, :1], state)

    with programmed(model, alone=True):
        return seconds(call, torch.device("cpu"), runs).median


def measure(name: str, runs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = zoo.create_model(name).eval()
    law: Runtime = idealised_runtime(model, LENGTHS, HELD_OUT, runs=runs)
    queries = []
    for prompt, new in QUERIES:
        taken, told = query(model, prompt, new, runs), law.seconds(prompt, new)
        queries.append({"prompt": prompt, "new": new, "measured": taken, "predicted": told, "error": told / taken - 1})
    return {"model": name, "prompt": law.prompt, "step": law.step, "errors": law.errors, "queries": queries}


def show(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for r in records:
        (a, b, c), (d, e) = r["prompt"], r["step"]
        rows.append([
            r["model"],
            f"{a * 1e3:.2f} + {b * 1e6:.1f}e-3 p + {c * 1e9:.1f}e-6 p^2",
            f"{d * 1e3:.2f} + {e * 1e6:.2f}e-3 n",
        ])  # fmt: skip
    return ["model", "prompt of p tokens, ms", "step after n tokens, ms"], rows


def show_errors(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(records[0]["errors"])
    queries = [f"query {q['prompt']} + {q['new']}" for q in records[0]["queries"]]
    rows = []
    for r in records:
        inside = [e for name, e in r["errors"].items() if str(max(HELD_OUT)) not in name]
        inside += [q["error"] for q in r["queries"]]
        worst = max(map(abs, inside))
        rows.append([
            r["model"], *(f"{r['errors'][name]:+.1%}" for name in names), *(f"{q['error']:+.1%}" for q in r["queries"]),
            f"{statistics.fmean(map(abs, inside)):.1%}", "met" if worst <= EXPECTED else f"missed: {worst:.0%}",
        ])  # fmt: skip
    return ["model", *names, *queries, "mean, inside", f"within {EXPECTED:.0%}"], rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line("runtime", __doc__, models=MODELS)
    parser.add_argument("--runs", type=int, default=9, help="times are the median of so many")
    options = parser.parse_args(arguments)

    records, failed = in_processes(measure, {name: (name, options.runs) for name in options.models})
    if not records:
        return 1
    tables = [("Fitted laws, float32", *show(records)), ("(predicted - measured) / measured", *show_errors(records))]
    publish("runtime", options, {"records": records, "failed": failed}, *tables)
    return 1 if failed else 0
