"""What every benchmark here shares: its command line, timing in turns, memory of one call, tables, files, plots."""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import gc
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress, track

from zoo.benchmarks.machine import ROOT, machine
from zoo.benchmarks.runner import DONE, Step, run_steps
from zoo.benchmarks.tables import Shown, markdown, table
from zoo.registry import lookup, nearest

# in a clone beside the scripts; of an installed package in the working folder
RESULTS = (ROOT if (ROOT / "pyproject.toml").exists() else Path()) / "benchmarks" / "results"
SCHEMA = 1  # of result files: raised when what reads them has to change
MIB = 2**20
# glibc returns what is freed at once, so that a peak is of what lives, not of what the allocator kept from before
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
Item = TypeVar("Item")


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    budget: float = 10.0,
    least: int = 3,
    most: int = 50,
    shortest: float = 0.0,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time calls in turns, so that whatever slows the machine slows all of them.

    The first run of each is a warm-up and not counted, unless it takes three budgets, and ten seconds at least: then it
    is the only one, so that a side a thousand times slower than the other does not take an afternoon. Print how many
    runs a figure stands for.

    Args:
        calls: name -> what to time.
        budget: seconds after which no further round starts, once ``least`` rounds are done.
        shortest: seconds a run takes at least: faster calls are repeated and their mean is the run's time, because the
            first call after another side's has its data to fetch.

    Returns:
        name -> seconds of every counted run, and name -> what the first run returned.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    results: dict[str, Any] = {}
    slow: set[str] = set()
    started = time.perf_counter()
    for turn in range(most + 1):
        for name in [name for name in calls if name not in slow]:
            gc.collect()
            before = time.perf_counter()
            for _ in range(repeats[name]):
                result = calls[name]()
            taken = (time.perf_counter() - before) / repeats[name]
            repeats[name] = max(1, min(100, int(shortest / taken)))
            results.setdefault(name, result)
            if turn == 0 and taken > max(3 * budget, 10.0):
                slow.add(name)
            if turn > 0 or name in slow:
                seconds[name].append(taken)
        if turn >= least and time.perf_counter() - started > budget:
            break
    return seconds, results


def prompt_and_step(
    moments: Mapping[str, Callable[[int], Sequence[float]]], steps: int, budget: float
) -> dict[str, tuple[list[float], list[float]]]:
    """Name -> seconds of a prompt with its first token, and of a token after it, of every run, in turns.

    Args:
        moments: name -> what continues a prompt by so many tokens and says when the first and the last were there: a
            prompt takes so much longer than a step that it must not be part of the difference.
        steps: over which the time of a token is the mean.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in moments}

    def run(name: str) -> None:
        started = time.perf_counter()
        first, *_, last = moments[name](1 + steps)
        taken[name].append((first - started, (last - first) / steps))

    runs, _ = interleaved({name: partial(run, name) for name in moments}, budget=budget)
    counted = {name: taken[name][-len(runs[name]) :] for name in moments}
    return {name: ([p for p, _ in pairs], [s for _, s in pairs]) for name, pairs in counted.items()}


def medians(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Side -> the median of its runs."""
    return {side: statistics.median(taken) for side, taken in runs.items()}


@torch.no_grad()
def forward(model: Callable[..., Any], *inputs: Any) -> Any:
    """A pass without gradients."""
    return model(*inputs)


def in_fresh_process(
    function: Callable[..., Any],
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Any:
    """``function(*arguments)`` in a process of its own; both must be importable. What it raises is raised here.

    After ``timeout`` seconds the process is ended and a multiprocessing.TimeoutError raised.
    """
    context = multiprocessing.get_context("spawn")
    kept = dict(os.environ)
    os.environ.update(environment or {})
    try:
        with context.Pool(1) as pool:
            return pool.apply_async(function, arguments).get(timeout)
    finally:
        os.environ.clear()
        os.environ.update(kept)


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes by which ``call`` raises this process's peak resident memory over what was resident before it.

    Run it in a fresh process: the peak is the whole process's. It sees every allocation, torch's or not.
    """
    gc.collect()
    _return_freed_memory()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak starts again from what is resident now
        before = _resident("VmRSS")
        call()
        return _resident("VmHWM") - before
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


def fresh_peak(function: Callable[..., Any], *arguments: object) -> Any:
    """``in_fresh_process`` for what calls ``peak_memory``: there the allocator returns what is freed."""
    return in_fresh_process(function, *arguments, environment=RETURNING)


def _return_freed_memory() -> None:
    """What earlier calls freed would hide as much of the next one's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def in_processes(
    measure: Callable[..., dict[str, Any]], jobs: Mapping[str, Sequence[Any]], limit: float = 300.0
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What a function says of each job, one after another in processes that their failures do not take others with.

    Args:
        measure: of a module.
        jobs: name -> arguments.
        limit: seconds after which one is given up.

    Returns:
        The records, and name -> error of those that have none.
    """
    kept = _Records()
    steps = [Step(name, _record, (measure, *arguments), limit) for name, arguments in jobs.items()]
    say = partial(Console(stderr=True).print, highlight=False, markup=False)
    run_steps(steps, kept, seconds=math.inf, processes=1, say=say)
    return kept.records, kept.failed


def _record(measure: Callable[..., dict[str, Any]], *arguments: Any) -> Iterator[dict[str, Any]]:
    yield measure(*arguments)


class _Records:
    """What ``run_steps`` finds, in memory."""

    def __init__(self) -> None:
        self.records, self.failed = list[dict[str, Any]](), dict[str, str]()

    def read(self, step: Step) -> dict[str, Any]:
        return {}

    def write(self, step: Step, status: str, seconds: float, found: dict[str, Any], error: str | None = None) -> None:
        if status == DONE:
            self.records.append(found)
        elif error:
            self.failed[step.name] = error.splitlines()[-1]


def fitted_exponent(lengths: Sequence[float], seconds: Sequence[float]) -> float:
    """The p of ``seconds = c * length**p``: least squares on the logarithms; 1 is linear."""
    x, y = [math.log(n) for n in lengths], [math.log(s) for s in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


class CommandLine(argparse.ArgumentParser):
    """A parser of ``zoo bench``: what is a whole number (``type=int``) counts something, and is at least 1.

    Args:
        whole: a result file that holds all there is: where it does, measuring some of it is an error without --no-save.
    """

    def __init__(self, name: str, description: str | None, whole: Path | None = None):
        super().__init__(name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.register("type", int, partial(natural, least=1))
        self.whole = whole

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As ever."""
        found = super().parse_args(*args, **kwargs)
        for action in self._actions:
            names, some = action.default, getattr(found, action.dest, None)
            chosen = isinstance(names, list) and all(isinstance(name, str) for name in names) and some != names
            if chosen and self.whole is not None and self.whole.exists() and not found.no_save:
                self.error(
                    f"{action.option_strings[0]} measures a part of what {self.whole.name} holds, which would go: "
                    "add --no-save, or leave it out"
                )
        return found


def natural(text: str, least: int = 0) -> int:
    """The type of an option that may be 0, as a seed."""
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
    return value


def command_line(
    subject: str, description: str | None, *, budget: float | None = None, models: Sequence[str] = (),
    besides: Sequence[str] = (), patterns: Iterable[str] = (), goes_on: bool = False,
) -> argparse.ArgumentParser:  # fmt: skip
    """The options of ``zoo bench subject``, with those that subjects share.

    Args:
        budget: seconds of a measurement, for an option of that name.
        models: measured where none is named, for an option of that name, which takes any model, and those besides.
        patterns: names, of which an option ``--models`` takes patterns.
        goes_on: what earlier runs have written stays, where this one measures a part.
    """
    machine()  # as it is before anything is measured
    parser = CommandLine(f"zoo bench {subject}", description, None if goes_on else RESULTS / f"{subject}.json")
    parser.add_argument("--no-save", action="store_true", help="only print")
    if budget is not None:
        help = f"seconds after which a measurement ends ({budget:g})"
        parser.add_argument("--budget", type=float, default=budget, help=help)
    if models:
        known, help = partial(_known, besides), f"models ({', '.join(models)})"
        parser.add_argument("--models", nargs="+", type=known, default=list(models), metavar="NAME", help=help)
    if names := list(patterns):
        fitting, help = partial(_fitting, names), f"of {'; '.join(names)}"
        parser.add_argument("--models", nargs="+", type=fitting, default=["*"], metavar="PATTERN", help=help)
    return parser


def _known(besides: Sequence[str], name: str) -> str:
    try:
        return name if name in besides else lookup(name).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _fitting(names: Sequence[str], pattern: str) -> str:
    if not fnmatch.filter(names, pattern):
        raise argparse.ArgumentTypeError(f"{pattern!r} fits none of {'; '.join(names)}{nearest(pattern, names)}")
    return pattern


def each(items: Iterable[Item], what: str = "measuring", total: int | None = None) -> Iterable[Item]:
    """The same, one after another, with a bar on stderr."""
    return track(items, what, total=total, console=Console(stderr=True), transient=True)


@contextmanager
def telling(total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A bar on stderr, and what is called with a name whenever something begins, ``total`` times where that is
    known."""
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda what: progress.update(task, description=what, advance=1)


def last_paragraph(description: str | None) -> str:
    """Of a subject's description: what was expected."""
    return (description or "").split("\n\n")[-1].strip()


def over_length(
    what: str, lengths: Sequence[int], curves: Mapping[str, Sequence[float]], limit: float | None = None
) -> Shown:
    """Seconds of each side at each length, and the exponents, which the limit stands beside."""
    columns = [what, *(f"T {n}" for n in lengths), "exponent", *(["limit"] if limit is not None else [])]
    rows = [
        [
            name, *(f"{s * 1e3:.2f} ms" for s in seconds),
            f"{fitted_exponent(lengths, seconds):.2f}" if len(lengths) > 1 else "",
            *([f"{limit:g}"] if limit is not None else []),
        ]
        for name, seconds in curves.items()
    ]  # fmt: skip
    return "Time over length", columns, rows


def save(name: str, record: Mapping[str, Any], text: str, folder: Path = RESULTS) -> None:
    """Write ``folder/name.json`` and ``folder/name.md``, which ends with where it was measured, and say so.

    Args:
        record: what was measured, with the ``machine()`` before it started.
        text: markdown.
    """
    here = record["machine"]
    packages = ", ".join(f"{package} {found}" for package, found in here["packages"].items())
    text += (
        f"\n{here['processor']}, {here['threads']} threads, {here['platform']}, Python {here['python']}, {packages}, "
    )
    text += f"commit {here['commit']}, {here['date']}.\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder / f"{name}.json", record)
    write_whole(folder / f"{name}.md", text)
    Console().print(f"written: {folder / name}.json, .md", highlight=False)


def publish(
    name: str,
    options: argparse.Namespace,
    record: Mapping[str, Any],
    *tables: Shown,
    before: str = "",
    after: str = "",
    plot: Callable[[Path], None] | None = None,
    folder: Path | None = None,
) -> None:
    """Print tables and what follows them, and, without --no-save, write the result file and the same as markdown.

    Args:
        options: of ``command_line``.
        record: what was measured; with the ``machine()`` of another run where it is of one.
        before: markdown that is written only.
        plot: draws what was measured, ``name.png``.
        folder: ``RESULTS`` where None.
    """
    console = Console(width=max(160, Console().width))
    for title, columns, rows in tables:
        console.print(table(title, columns, rows))
    if after:
        console.print(after.strip(), highlight=False)
    if not options.no_save:
        folder = RESULTS if folder is None else folder
        text = before + "\n".join(markdown(*shown) for shown in tables) + (f"\n{after}" if after else "")
        save(name, {"machine": machine()} | dict(record), text, folder)
        if plot is not None:
            plot(folder / f"{name}.png")


def write_result(path: Path, record: Mapping[str, Any]) -> None:
    """A result file, with the schema that it is of."""
    write_whole(path, json.dumps({"schema": SCHEMA, **record}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """The file has its old content or the new one, whenever the writing is broken off."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
