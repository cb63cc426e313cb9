"""What every benchmark here shares: interleaved timing, peak memory of one call, the machine's record, tables."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
# in a clone beside the scripts; of an installed package in the working folder
RESULTS = (ROOT if (ROOT / "pyproject.toml").exists() else Path()) / "benchmarks" / "results"
SCHEMA = 1  # of result files: raised when what reads them has to change
CODE = ("--", ".", ":!benchmarks/results")  # what a change of makes results those of no commit
MIB = 2**20
# glibc returns what is freed at once, so that a peak is of what lives, not of what the allocator kept from before
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
Shown = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, columns and rows of a table
PACKAGES = ("torch", "transformers", "timm", "lightning", "mamba-ssm", "triton", "xllamacpp")


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    budget: float = 10.0,
    least: int = 3,
    most: int = 50,
    shortest: float = 0.0,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time calls in turns, so that whatever slows the machine slows all of them.

    The first run of each is a warm-up and not counted, unless it takes three budgets: then it is the only one, so that
    a side a thousand times slower than the other does not take an afternoon. Print how many runs a figure stands for.

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
            if turn == 0 and taken > 3 * budget:
                slow.add(name)
            if turn > 0 or name in slow:
                seconds[name].append(taken)
        if turn >= least and time.perf_counter() - started > budget:
            break
    return seconds, results


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


def _return_freed_memory() -> None:
    """What earlier calls freed would hide as much of the next one's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def fitted_exponent(lengths: Sequence[float], seconds: Sequence[float]) -> float:
    """The p of ``seconds = c * length**p``: least squares on the logarithms; 1 is linear."""
    x, y = [math.log(n) for n in lengths], [math.log(s) for s in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def date() -> str:
    """Now, to the minute."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def machine() -> dict[str, object]:
    """What a reader needs to judge the figures: hardware, threads, versions, commit, date."""
    return {
        "date": date(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", *CODE) else ""),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def command_line(subject: str, description: str | None) -> argparse.ArgumentParser:
    """The options of ``zoo bench subject``, with the one that all subjects share."""
    parser = argparse.ArgumentParser(
        f"zoo bench {subject}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-save", action="store_true", help="only print")
    return parser


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal: the first column names, the others are figures."""
    shown = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*row)
    return shown


def markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as markdown."""
    lines = [f"### {title}", "", "| " + " | ".join(columns) + " |"]
    lines.append("| --- |" + " ---: |" * (len(columns) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


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
    folder: Path = RESULTS,
) -> None:
    """Print tables and what follows them, and, without --no-save, write the result file and the same as markdown.

    Args:
        options: of ``command_line``.
        record: what was measured, with the ``machine()`` before it started, or as it is now.
        before: markdown that is written only.
    """
    console = Console(width=max(160, Console().width))
    for title, columns, rows in tables:
        console.print(table(title, columns, rows))
    if after:
        console.print(after.strip(), highlight=False)
    if not options.no_save:
        text = before + "\n".join(markdown(*shown) for shown in tables) + (f"\n{after}" if after else "")
        save(name, {"machine": machine()} | dict(record), text, folder)


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
