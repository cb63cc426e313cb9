"""Do algorithms that were learned hold for larger numbers? Positional beside standard attention on five tasks.

    zoo bench extrapolation               # writes benchmarks/results/extrapolation.{json,md}
    zoo bench extrapolation --only sort --updates 1000 --no-save

Both models have the same width, depth, initial weights where they share them, and training arrays, with numbers in
[-2, 2); they are scored on arrays of that range and of ranges up to ten times as wide. Expectation, from the results in
the authors' repository (opallab/positional_attention, medians of ten runs of 60,000 updates): errors at ten times the
range of 0.02 (median) to 0.26 (max_subarray) with positional attention, and of 20 (min) to 199 (max_subarray) with
standard attention, where those at the range of training are alike. So here: with positional attention the error at ten
times the range is the smaller one in every task.

Paper: "Positional Attention: Expressivity and Learnability of Algorithmic Computation", arXiv 2410.01686.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.common import command_line, each, natural, publish
from zoo.benchmarks.learning import learn
from zoo.sequence.positional import ATTENTIONS
from zoo.train.data import ArraysDataModule
from zoo.train.data.arrays import ALGORITHMS
from zoo.train.optim import build_optimizer

SCALES = (1, 2, 4, 10)
TESTED = 1000  # arrays a scale
COLUMNS = ["task", "attention", *(f"error at {scale}x" for scale in SCALES), "variance at 10x", "parameters"]


@torch.no_grad()
def error(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Mean of the squares of what the answers miss."""
    return (model.eval()(inputs) - targets).square().mean().item()


def tests(algorithm: Any) -> dict[int, tuple[Tensor, Tensor]]:
    """Scale -> arrays and answers."""
    found = {}
    for scale in SCALES:
        data = ArraysDataModule(algorithm=algorithm, scale=scale, test_samples=TESTED)
        data.setup()
        found[scale] = data.sources["test"].fetch(torch.arange(TESTED), 0)
    return found


def measure(algorithm: Any, attention: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model on one task: the record of one row."""
    started = time.perf_counter()
    torch.manual_seed(options.seed)
    model = zoo.create_model(options.model, attention=attention)
    optimizer = build_optimizer(model, "adamw", lr=options.lr, weight_decay=0.0)
    data = ArraysDataModule(algorithm=algorithm)
    data.setup()
    size = options.batch_size

    def loss(step: int) -> Tensor:
        inputs, targets = data.sources["train"].fetch(torch.arange(step * size, (step + 1) * size), 0)
        return (model(inputs) - targets).square().mean()

    learn(model, optimizer, loss, options.updates)
    held_out = tests(algorithm)
    return {
        "task": algorithm, "attention": attention,
        "errors": {str(scale): error(model, *samples) for scale, samples in held_out.items()},
        "variance": held_out[SCALES[-1]][1].var().item(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def show(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [r["task"], r["attention"], *(f"{r['errors'][str(s)]:.2g}" for s in SCALES), f"{r['variance']:.3g}",
         f"{r['parameters']:,}"]
        for r in records
    ]  # fmt: skip


def verdict(records: Sequence[dict[str, Any]]) -> str:
    """Whether the expectation was met, task by task."""
    last = {(r["task"], r["attention"]): r["errors"][str(SCALES[-1])] for r in records}
    tasks = list(dict.fromkeys(r["task"] for r in records))
    missed = [task for task in tasks if not last[task, "positional"] < last[task, "standard"]]
    met = f"met in {len(tasks) - len(missed)} of {len(tasks)} tasks"
    return f"The expectation is {met}" + (f", missed in {', '.join(missed)}." if missed else ".")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("extrapolation", __doc__)
    parser.add_argument("--only", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS), metavar="TASK")
    parser.add_argument("--model", default="positional_nano", choices=zoo.list_models(family="positional"))
    parser.add_argument("--updates", type=int, default=1000, help="training steps of a model")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=natural, default=0, help="of the weights")
    options = parser.parse_args(arguments)

    jobs = [(task, attention) for task in options.only for attention in ATTENTIONS]
    records = [measure(*job, options) for job in each(jobs, "training")]
    given = (
        f"{options.updates} updates of {options.batch_size} arrays, learning rate {options.lr:g}, seed {options.seed}"
    )
    title = f"{options.model}, mean squared errors after {given}"
    found = {"settings": vars(options), "records": records}
    publish("extrapolation", options, found, (title, COLUMNS, show(records)), after=f"{verdict(records)}\n")
