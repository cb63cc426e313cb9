"""The steps of `make gpu`, in the order of what they tell."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from zoo.benchmarks.gpu import models, operations
from zoo.benchmarks.gpu.report import blocks, report
from zoo.benchmarks.gpu.timing import peaks
from zoo.benchmarks.runner import DONE, Results, Step, run_steps, sources, write_json
from zoo.benchmarks.subjects import SUBJECTS
from zoo.kernels.triton_support import BLOCKS, target

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("kernels", "layers", "zoo", "benchmarks/gpu")
LANGUAGE = ("mamba2_130m", "mamba_130m", "transformer_130m", "based_360m")
VISION = ("vim_small",)
TINY_LANGUAGE, TINY_VISION = ("mamba2_nano", "mamba_nano", "transformer_nano", "based_nano"), ("vim_nano",)
TINY_TUNED = ("rope",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps that are not done; the exit code is 1 where one is wrong, failed or was not reached."""
    parser = argparse.ArgumentParser("zoo bench gpu", description="Everything that only a GPU can show.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that everything runs")
    parser.add_argument("--seconds", type=float, default=520.0, help="for everything (default: 520)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="steps whose name holds one of these words")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", metavar="DIR", help="a file a step")
    parser.add_argument("--output", type=Path, metavar="DIR", help="summary (default: benchmarks/results, or --work)")
    parser.add_argument("--install", action="store_true", help="write tuned block sizes into kernels/blocks.json")
    parser.add_argument("--fresh", action="store_true", help="run again what is done")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --tiny shows that the steps run")
    if options.tiny and options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # of the processes to come
    options.output = options.output or (options.work if options.tiny else ROOT / "benchmarks" / "results")
    options.output.mkdir(parents=True, exist_ok=True)

    chosen = [s for s in steps(options.device, options.tiny) if _named(s.name, options.only)]
    results = Results(options.work / "steps", {**versions(options.device), "tiny": options.tiny})
    if options.fresh:
        for step in chosen:
            results.forget(step)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        summarise(chosen, results, options)

    processes = 1 if options.device == "cpu" else max(1, min(8, (os.cpu_count() or 2) // 2))
    records = run_steps(chosen, results, seconds=options.seconds, processes=processes, say=say)
    summarise(chosen, results, options)
    sys.stdout.write(f"{options.output / 'gpu.md'}\n")
    wrong = [r for r in records if r["name"].startswith("right ") and set(r["found"].values()) - {operations.RIGHT}]
    return 1 if wrong or any(r["status"] != DONE for r in records) else 0


def steps(device: str, tiny: bool) -> list[Step]:
    """All steps, the most telling first."""
    names = [subject.name for subject in SUBJECTS]
    lengths, budget = ((16,), 0.001) if tiny else ((4096, 16384), 0.15)
    checked = ((3,), ("float32",), operations.TRITON) if tiny else ((63, 500, 4096), ("float32", "bfloat16"))
    found = [Step("machine", machine, (device, tiny), 60)]
    found += [
        Step(f"right {case.operation}, {case.name}", operations.right, (case.name, device, *checked), 120, alone=False)
        for case in _cases(tiny)
    ]
    found += [Step(f"fast {name}", operations.fast, (name, device, lengths, budget), 30) for name in names]
    found += [
        Step(f"model {name}", models.language, (name, device, *((1, 16) if tiny else (8, 2048)), 4 * budget), 45)
        for name in (TINY_LANGUAGE if tiny else LANGUAGE)
    ]
    found += [
        Step(f"model {name}", models.vision, (name, device, 1 if tiny else 128, 4 * budget), 45)
        for name in (TINY_VISION if tiny else VISION)
    ]
    if importlib.util.find_spec("triton") is not None:
        tuned = TINY_TUNED if tiny else names
        found += [Step(f"tuned {name}", operations.tuned, (name, device, lengths[0], budget), 25) for name in tuned]
    return found


def machine(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """What the figures were measured on."""
    yield {**versions(device), "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    yield {"peaks": peaks(device, tiny)}


def versions(device: str) -> dict[str, str]:
    """The device and the versions that results belong to."""
    found = {package: _version(package) for package in ("torch", "triton", "mamba-ssm", "flash-linear-attention")}
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {"device": name, "python": platform.python_version(), **found, "sources": sources(*MEASURED)}


def summarise(chosen: Sequence[Step], results: Results, options: argparse.Namespace) -> None:
    """`gpu.json`, `gpu.md` and `blocks.json` of what is known so far."""
    records = [known for step in chosen if (known := results.read(step))]
    write_json(options.output / "gpu.json", records)
    (options.output / "gpu.md").write_text(report(records), encoding="utf-8")
    better = blocks(records, target(torch.device(options.device)))
    if not better:
        return
    table = json.loads(BLOCKS.read_text(encoding="utf-8"))
    for place, kernels in better.items():
        for operation, classes in kernels.items():
            for shape_class, sizes in classes.items():
                table.setdefault(place, {}).setdefault(operation, {}).setdefault(shape_class, {}).update(sizes)
    write_json(options.output / "blocks.json", table)
    if options.install:
        write_json(BLOCKS, table)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _cases(tiny: bool) -> list[Any]:
    """Of a dry run one an operation."""
    cases = list(operations.cases().values())
    return list({case.operation: case for case in reversed(cases)}.values()) if tiny else cases


def _named(name: str, words: Sequence[str] | None) -> bool:
    return words is None or any(word in name for word in words)
