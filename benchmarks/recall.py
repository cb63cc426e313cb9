"""How much memory does recall take? Accuracy on synthetic recall against the bytes of a sequence's state.

    zoo bench recall                          # writes benchmarks/results/recall.{json,md,png}; resumes what is there
    zoo bench recall --only mqar --models "based, *" "attention"
    zoo bench recall --fresh --no-save        # trains all points anew, only prints

Every model has the same width and depth and is trained on the same sequences from the same seed, at each of the same
learning rates; the one with the best validation accuracy is scored on test sequences. A training ends early once it
answers all of the validation set. The state is what ``init_state`` gives, after it has run one sequence.
A window of 32 is all of a sequence: full attention behind a convolution.

- mqar: multi-query associative recall, key-value pairs to be looked up (Zoology, arXiv 2312.04927).
- selective_copying: tokens scattered over noise, to be repeated in order (Mamba, arXiv 2312.00752).

One point of it by hand: ``zoo train mqar --model.model mamba2_nano --model.model_args.d_state 8``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.common import RESULTS, command_line, each, machine, natural, publish, write_result
from zoo.benchmarks.learning import learn
from zoo.benchmarks.tables import panels
from zoo.train.data import MQAR, SelectiveCopying
from zoo.train.data.synthetic import SyntheticTask
from zoo.train.optim import build_optimizer

TASKS: dict[str, SyntheticTask] = {
    "mqar": MQAR(seq_len=32, vocab_size=64, num_kv_pairs=8, random_non_queries=False),
    "selective_copying": SelectiveCopying(seq_len=23, vocab_size=16, num_data=8),
}
SIZES = {"dim": 64, "depth": 2}
# standard deviation of the initial weights, about 1 / sqrt(dim): with 0.02, made for large widths, few models learn
INITIAL = 0.1
LEARNING_RATES = (2e-3, 6e-3)
TRAIN, VALIDATION, TEST = 1, 2, 3  # streams of sequences
IGNORED, PERFECT = -100, 0.999


class Subject(NamedTuple):
    """A registered model and the options in which it differs from it, besides ``SIZES``."""

    family: str
    model: str
    options: dict[str, Any]


def based(pattern: str, **options: Any) -> Subject:
    """One head."""
    options |= {"pattern": pattern, "num_heads": 1, "mlp_dim": 128}
    return Subject("BASED", "based_nano", options)


MODELS = {
    "attention": Subject("attention", "transformer_nano", {"num_heads": 1, "num_kv_heads": 1, "mlp_dim": 128}),
    **{f"based, conv + taylor, feature dim {n}": based("ct", feature_dim=n) for n in (1, 2, 4, 8)},
    **{f"based, conv + window {n}": based("cs", window=n) for n in (4, 16, 32)},
    "based, window 16 + taylor, feature dim 4": based("st", window=16, feature_dim=4),
    "mamba, d_state 16": Subject("Mamba", "mamba_nano", {"d_state": 16}),
    **{f"mamba2, d_state {n}": Subject("Mamba-2", "mamba2_nano", {"d_state": n, "head_dim": 32}) for n in (4, 16, 64)},
    "s4d, d_state 32": Subject("S4D", "s4d_nano", {"d_state": 32, "mlp_dim": 128}),
    "longconv": Subject("LongConv", "longconv_nano", {"attention_layers": (), "kernel_length": 32, "mlp_ratio": 2}),
}


def build(subject: Subject, task: SyntheticTask) -> nn.Module:
    """The model at the suite's width and depth, with the vocabulary of the task."""
    return zoo.create_model(
        subject.model, vocab_size=task.vocab_size, initializer_range=INITIAL, **SIZES, **subject.options
    )


@torch.no_grad()
def state_bytes(model: Any, length: int) -> int:
    """Memory of one sequence's state after ``length`` tokens."""
    state = model.eval().init_state(1, max_length=length)
    model(torch.zeros(1, length, dtype=torch.int64), state)
    return state.nbytes


@torch.no_grad()
def accuracy(model: nn.Module, tokens: Tensor, labels: Tensor) -> float:
    """Share of the scored positions at which the likeliest token is the label."""
    model.eval()
    scored, right = labels[:, 1:] != IGNORED, 0
    for batch, answers, mask in zip(tokens.split(250), labels[:, 1:].split(250), scored.split(250), strict=True):
        right += (model(batch)[:, :-1].argmax(-1) == answers)[mask].sum().item()
    return right / scored.sum().item()


def train(subject: Subject, task: SyntheticTask, lr: float, options: argparse.Namespace) -> tuple[nn.Module, int]:
    """The model after at most ``options.updates``, fewer where it answers all of the validation set; and how many."""
    torch.manual_seed(options.seed)
    return fit(build(subject, task), task, lr, options)


def fit(model: nn.Module, task: SyntheticTask, lr: float, options: argparse.Namespace) -> tuple[nn.Module, int]:
    """The same of a model that is there already."""
    optimizer = build_optimizer(model, "adamw", lr=lr, weight_decay=0.1)
    validation, size = task.generate(torch.arange(1000), VALIDATION), options.batch_size

    def loss(step: int) -> Tensor:
        tokens, labels = task.generate(torch.arange(step * size, (step + 1) * size), TRAIN)
        return model(tokens, labels=labels)

    def enough(done: int) -> bool:
        return done % 100 == 0 and accuracy(model, *validation) >= PERFECT

    return model, learn(model, optimizer, loss, options.updates, enough=enough)


def measure(task_name: str, name: str, lr: float, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model on one task at one learning rate: the record of one point."""
    subject, task, started = MODELS[name], TASKS[task_name], time.perf_counter()
    model, done = train(subject, task, lr, options)
    validation, test = (task.generate(torch.arange(1000), seed) for seed in (VALIDATION, TEST))
    return {
        "task": task_name, "model": name, "family": subject.family, "lr": lr, "updates": done,
        "validation": accuracy(model, *validation), "test": accuracy(model, *test),
        "state_bytes": state_bytes(model, task.length), "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def saved(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The records in a file of the same settings: of an earlier run, or of one beside this."""
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    return before["records"] if before["settings"] == settings else []


def point(record: dict[str, Any]) -> tuple[str, str, float]:
    """What a record is of."""
    return record["task"], record["model"], record["lr"]


def best(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each task and model the learning rate with the highest validation accuracy, in the order of ``MODELS``."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: -r["validation"]):
        found.setdefault((record["task"], record["model"]), record)
    return [found[task, name] for task in TASKS for name in MODELS if (task, name) in found]


def show(records: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            r["model"],
            f"{r['state_bytes']:,}",
            f"{100 * r['test']:.1f}",
            f"{r['parameters']:,}",
            f"{r['lr']:g}",
            str(r["updates"]),
        ]
        for r in sorted(records, key=lambda r: r["state_bytes"])
    ]
    return ["model", "state, bytes", "test accuracy %", "parameters", "learning rate", "updates"], rows


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over state bytes, one panel a task, one colour a family."""
    families = list(dict.fromkeys(subject.family for subject in MODELS.values()))
    with panels(path, 1, len(TASKS), (7 * len(TASKS), 4.5)) as axes:
        for axis, task in zip(axes.flat, TASKS, strict=True):
            for index, family in enumerate(families):
                found = [r for r in records if r["task"] == task and r["family"] == family]
                points = sorted((r["state_bytes"], 100 * r["test"]) for r in found)
                if points:
                    axis.plot(*zip(*points, strict=True), "o", color=f"C{index}", label=family)
            axis.set(xscale="log", title=task, xlabel="state of a sequence, bytes", ylabel="test accuracy, %")
            axis.set_ylim(-3, 103)
            axis.legend(fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("recall", __doc__, patterns=MODELS, goes_on=True)
    parser.add_argument("--only", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="TASK")
    parser.add_argument("--updates", type=int, default=2000, help="most training steps of a point")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=natural, default=0, help="of the weights")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results hold")
    options = parser.parse_args(arguments)

    settings = {
        "sizes": SIZES, "initializer_range": INITIAL, "tasks": {name: repr(task) for name, task in TASKS.items()},
        "updates": options.updates, "batch_size": options.batch_size, "seed": options.seed,
    }  # fmt: skip
    path = RESULTS / "recall.json"
    records = [] if options.fresh else saved(path, settings)
    known = set(map(point, records))
    jobs = [
        (task, name, lr) for task in options.only for name in MODELS for lr in LEARNING_RATES
        if any(fnmatch(name, pattern) for pattern in options.models) and (task, name, lr) not in known
    ]  # fmt: skip
    for job in each(jobs, "training"):
        record = measure(*job, options)
        if options.no_save:
            records.append(record)
        else:
            records = [r for r in saved(path, settings) if point(r) != point(record)] + [record]
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_result(path, {"machine": machine(), "settings": settings, "records": records})

    chosen = best(records)
    tables = [
        (f"{task}, T {TASKS[task].length}, width {SIZES['dim']}, depth {SIZES['depth']}", *show(found))
        for task in TASKS
        if (found := [r for r in chosen if r["task"] == task])
    ]
    after = (
        f"{', '.join(map(repr, TASKS.values()))}; learning rates {LEARNING_RATES}, at most {options.updates} updates "
    )
    after += f"of {options.batch_size} sequences, seed {options.seed}, weights of standard deviation {INITIAL}. "
    found = {"settings": settings, "records": records}
    publish("recall", options, found, *tables, after=after, plot=partial(plot, chosen), folder=RESULTS)
