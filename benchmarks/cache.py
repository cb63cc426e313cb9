"""Every cache policy beside the dense cache: what is still answered, what is held, and how long it takes.

    zoo bench cache                                   # writes benchmarks/results/cache.{json,md,png}
    zoo bench cache --models sessions_transformer --methods snapkv "t*" --samples 32 --no-save
    zoo bench cache --only memory --no-save           # of 32,768 tokens with a budget of 1,024

Small models that answer with the dense cache (recipes ``sessions_transformer`` and ``sessions_falcon_h1``; those whose
weights come with the package) are asked twice about one context of 92 to 116 tokens:
passkeys, pairs of keys and values, several keys in one question, and variables that stand for one another. The context
is read with the first question, as ``zoo.generate`` reads a prompt; all that follows, the second question too, comes a
token at a time, as if the model wrote it. Answers count if every token of them is right; the right ones go into the
text. So the first question tells what a method finds that has seen it, and the second what it has thrown away. Budgets
are tokens held, or seen in a step; bytes are those of keys, values and what a policy remembers, a sequence. The draft
model of SpecKV and SpecPC is the transformer. To TIM a turn is a subtask, which is closed when the next one begins.

Times are of ``zoo.generate``'s steps: without a policy these are programs of C, under one the program calls the policy
in every layer, and so it does the dense cache as a policy, which the others are compared with.

Expected, before it was measured:

{expected}
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.benchmarks.cache_claims import EXPECTED, Record, verdicts
from zoo.benchmarks.cache_memory import memory
from zoo.benchmarks.cache_methods import AS_POLICY, DENSE, UNBUDGETED, Known, known_of, methods_at
from zoo.benchmarks.cache_models import RECIPES, packed, trained
from zoo.benchmarks.cache_readers import Reader, WorkingReader, reader
from zoo.benchmarks.cache_report import QUESTIONS, plot, tables
from zoo.benchmarks.common import command_line, each, publish
from zoo.generate.decode import generating
from zoo.generate.options import Options
from zoo.train.data import KeyValues, Passkeys, VariableTracking
from zoo.train.data.sessions import Session

__doc__ = (__doc__ or "").replace("{expected}", EXPECTED)
TASKS: dict[str, Session] = {
    "passkeys": Passkeys(), "key_values": KeyValues(), "multi_query": KeyValues(queries=4),
    "variables": VariableTracking(),
}  # fmt: skip
BUDGETS = (16, 32, 64)
CONTEXT = 128
TEST = 2  # stream of sequences that no training has
LENGTH, STEPS, ROUNDS, TIMED_BUDGET = 2048, 16, 3, 256
PARTS = ("accuracy", "time", "memory")


@torch.inference_mode()
def answers(model: Any, task: Session, tokens: Tensor, options: Options) -> tuple[list[float], Reader | WorkingReader]:
    """The shares of sequences (B, T) whose first and second questions are answered, and what has read them."""
    turns = len(QUESTIONS) * task.turn
    first = task.context + 1 + task.answered.index(True)  # the marker, the question
    run = reader(model, options, tokens[:, :first])
    said = [run.logits.argmax(-1)]
    for place in range(first, task.context + turns - 1):
        run.read(tokens[:, place : place + 1])
        said.append(run.logits.argmax(-1))
    asked = torch.tensor([False, *task.answered]).repeat(len(QUESTIONS))[first - task.context :]
    right = torch.stack(said, 1) == tokens[:, first : task.context + turns]
    late = torch.arange(first, task.context + turns) >= task.context + task.turn
    return [(right | ~(asked & (late == second))).all(1).double().mean().item() for second in (False, True)], run


def wanted(methods: dict[str, Options], options: argparse.Namespace) -> list[str]:
    """Names of the methods that were asked for, and the dense cache."""
    return [name for name in methods if name in DENSE or any(fnmatch(name, one) for one in options.methods)]


def accuracy(model: Any, known: Known, recipe: str, options: argparse.Namespace) -> Iterator[Record]:
    """A record a method and budget."""
    sequences = {name: task.generate(torch.arange(options.samples), TEST)[0] for name, task in TASKS.items()}
    steps = len(QUESTIONS) * max(task.turn for task in TASKS.values())
    for budget in BUDGETS:
        methods = methods_at(budget, CONTEXT, known, steps)
        for method in wanted(methods, options):
            if method == AS_POLICY or (budget != BUDGETS[-1] and method in UNBUDGETED):
                continue
            scores, slots, size = {}, [], []
            for name, task in TASKS.items():
                scores[name], run = answers(model, task, sequences[name], methods[method])
                for kept, found in zip((slots, size), run.held(), strict=True):
                    kept.append(found)
            yield {
                "model": recipe, "method": method, "budget": budget, "answered": scores,
                "slots": round(statistics.fmean(slots), 1), "bytes": round(statistics.fmean(size)),
            }  # fmt: skip


@torch.inference_mode()
def timed(model: Any, known: Known, recipe: str, options: argparse.Namespace) -> list[Record]:
    """Prefill of ``LENGTH`` tokens and a step after it, of one sequence: medians of rounds in which all take turns."""
    methods = methods_at(TIMED_BUDGET, LENGTH, known, STEPS)
    tokens = torch.randint(1, 128, (1, LENGTH + STEPS), generator=torch.Generator().manual_seed(0))
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in wanted(methods, options)}
    for _ in each(range(ROUNDS + 1), f"timing {recipe}"):
        for name, found in runs.items():
            with generating(model, methods[name]):
                started = time.perf_counter()
                run = reader(model, methods[name], tokens[:, :LENGTH])
                prefilled = time.perf_counter()
                for place in range(LENGTH, LENGTH + STEPS):
                    run.read(tokens[:, place : place + 1])
                found.append((prefilled - started, (time.perf_counter() - prefilled) / STEPS))
    about = {"model": recipe, "length": LENGTH, "steps": STEPS, "budget": TIMED_BUDGET}
    return [
        about | {"method": name}
        | {key: 1e3 * statistics.median(x) for key, x in zip(("prefill_ms", "step_ms"), zip(*found[1:], strict=True),
                                                             strict=True)}
        for name, found in runs.items()
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("cache", __doc__)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--models", nargs="+", default=packed(), choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--methods", nargs="+", default=["*"], metavar="PATTERN", help="beside the dense cache")
    parser.add_argument("--samples", type=int, default=100, help="sequences a task")
    options = parser.parse_args(arguments)

    started, load = time.perf_counter(), os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    found: dict[str, Any] = {name: [] for name in PARTS} | {"samples": options.samples}
    draft = trained(RECIPES[0])
    for recipe in options.models if {"accuracy", "time"} & set(options.only) else ():
        model = trained(recipe)
        known = known_of(model, draft)
        if "accuracy" in options.only:
            records = accuracy(model, known, recipe, options)
            found["accuracy"] += each(records, f"asking {recipe}")
        if "time" in options.only:
            found["time"] += timed(model, known, recipe, options)
    if "memory" in options.only:
        found["memory"] = memory(draft)
    found |= {"verdicts": verdicts(found), "seconds": round(time.perf_counter() - started)}
    before = f"# Caches\n\n{(__doc__ or '').split(chr(10) * 2, 2)[2].strip()}\n\n"
    after = f"{', '.join(map(repr, TASKS.values()))}; {found['samples']} sequences a task, {found['seconds']} s in "
    after += f"all. Load of the machine before: {load:.1f}.\n"
    record = {"load": load, "budgets": BUDGETS} | found
    publish("cache", options, record, *tables(found), before=before, after=after, plot=partial(plot, found["accuracy"]))
