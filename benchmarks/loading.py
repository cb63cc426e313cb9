"""What loading costs: the import, and a model from a folder beside building it and copying the weights into it.

    zoo bench loading                 # writes benchmarks/results/loading.json and loading.md
    zoo bench loading --dim 512 --no-save

``import zoo`` beside ``import torch``, each in processes of their own, in turns. Then a mamba2 model of random weights
in a safetensors file: ``create_model("local-dir:...")`` beside ``create_model`` followed by ``load_state_dict`` of the
file; seconds, and the peak of the process's memory above what it held before, over the size of the weights, once built
and after every weight was read. The first model that a process builds without memory makes torch import its compiler,
whatever the model's size: a nano is loaded first, and what that costs is a row of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

import zoo
from zoo.benchmarks.common import command_line, in_fresh_process, interleaved, medians, peak_memory, publish
from zoo.checkpoints import read_state_dict

NAME = "mamba2_130m"
IMPORTS = ("import torch", "import zoo")


def mapped(folder: str, options: dict[str, Any]) -> nn.Module:
    """Ours: the file's tensors become the parameters."""
    return zoo.create_model(f"local-dir:{folder}")


def copied(folder: str, options: dict[str, Any]) -> nn.Module:
    """The usual way: initialise, read the file, copy."""
    model = zoo.create_model(NAME, **options)
    model.load_state_dict(read_state_dict(folder), strict=False)
    return model


LOADERS: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {"build, then copy": copied, "zoo": mapped}


def load_nano() -> nn.Module:
    """A model of 2 MB from a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        return zoo.create_model(f"local-dir:{zoo.save_model(zoo.create_model('mamba2_nano'), scratch)}")


def first_load() -> tuple[float, int]:
    """Seconds and peak bytes of the first load in a process, of a model whose weights hardly count."""
    before = time.perf_counter()
    peak = peak_memory(load_nano)
    return time.perf_counter() - before, peak


def peak(loader: str, folder: str, options: dict[str, Any], read: bool) -> float:
    """Peak memory of one load, and of reading every weight after it where ``read`` is set, over the weights' size."""
    load_nano()  # brings in what is imported on first use
    kept: list[nn.Module] = []

    def load() -> None:
        kept.append(LOADERS[loader](folder, options))
        if read:
            for parameter in kept[0].parameters():
                parameter.sum()

    return peak_memory(load) / sum(parameter.nbytes for parameter in kept[0].parameters())


def measure(options: dict[str, Any], budget: float) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """Seconds of every import, and a record a loader."""
    commands = {line: partial(subprocess.run, [sys.executable, "-c", line], check=True) for line in IMPORTS}
    imports, _ = interleaved(commands, budget=budget)
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(zoo.save_model(zoo.create_model(NAME, **options), scratch))
        calls = {name: partial(loader, folder, options) for name, loader in LOADERS.items()}
        seconds, models = interleaved(calls, budget=budget)
        weights = sum(parameter.nbytes for parameter in models["zoo"].parameters())
        records = [
            {
                "loader": name,
                "bytes": weights,
                "seconds": seconds[name],
                "built": in_fresh_process(peak, name, folder, options, False),
                "read": in_fresh_process(peak, name, folder, options, True),
            }
            for name in LOADERS
        ]
    return imports, records


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("loading", __doc__, budget=20.0)
    parser.add_argument("--dim", type=int, default=768, help="of the model that is loaded")
    parser.add_argument("--depth", type=int, default=24)
    options = parser.parse_args(arguments)
    first = in_fresh_process(first_load)
    imports, records = measure({"dim": options.dim, "depth": options.depth}, options.budget)

    took = medians(imports)
    rows = [[line, f"{seconds:.2f} s", f"{seconds / took[IMPORTS[0]]:.2f}"] for line, seconds in took.items()]
    seconds, peak_bytes = first
    rows.append(["the first load in a process, of a nano", f"{seconds:.2f} s, {peak_bytes / 2**20:.0f} MiB", ""])
    loads = [
        [r["loader"], f"{1e3 * statistics.median(r['seconds']):.0f} ms", f"{r['built']:.1%}", f"{r['read']:.1%}"]
        for r in records
    ]
    tables = [
        ("Import", ("statement", "median", "over torch"), rows),
        (
            f"A mamba2 of {records[0]['bytes'] / 2**20:.0f} MiB from a folder; peak memory over the weights' size",
            ("way", "median", "once built", "all weights read"),
            loads,
        ),
    ]
    publish("loading", options, {"imports": imports, "first_load": first, "records": records}, *tables)
