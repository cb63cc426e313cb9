"""Ways to train in less memory beside plain training and activation checkpointing, over length and over depth.

    zoo bench memory                      # writes benchmarks/results/memory.{json,md,png}
    zoo bench memory --lengths 512 1024 --depths 2 4 --budget 1 --no-save

A training step is forward, backward and a step of SGD, which keeps nothing: what is compared is activations. The model
is a transformer of width 256 with 16,384 words, float32, batch 1. A peak is by how much the step raises the resident
memory of a process of its own; times are medians of steps in turns, in one process. The system's cache of files, where
ssdtrain and memo put activations on a CPU, is not the process's memory.

Expectations are the papers' own, of large models on GPUs, stated before anything was measured here:
streambp: 2.8 to 5.5 times the longest sequence of checkpointing, in comparable or less time (arXiv 2506.03077,
abstract). Their checkpointing makes the logits whole, in float32; ours (the row "checkpointing") never does, so both
are measured. The longest sequence is where the line through the two longest measured ones meets a budget of memory.
ssdtrain: 47 % less peak memory of activations at almost no overhead (arXiv 2408.10013; the figure is not checked
against the paper). reversible: what is kept does not grow with depth (arXiv 1707.04585). memo: nothing of attention is
computed twice, so with alpha 0.5 it takes less time than checkpointing (arXiv 2407.12117; no figure of a step). coat,
activations alone: 1.54 times less memory than in 16 bits, end to end (arXiv 2410.19313, abstract). lemo: up to 1.93
times less (arXiv 2501.09767, abstract).

sltt is for spiking networks, whose length is their steps in time: spiking_resnet18, 8 images of 32 x 32. Expectation:
over 70 % less memory and over 50 % less time than gradients through six steps (arXiv 2302.14311, abstract).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

import zoo
from zoo.benchmarks.common import (
    MIB,
    RESULTS,
    RETURNING,
    command_line,
    in_fresh_process,
    interleaved,
    machine,
    peak_memory,
    publish,
)
from zoo.train.memory import Lean, as_memories

SHAPE: dict[str, Any] = {"vocab_size": 16384, "dim": 256, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 704}
LENGTHS, DEPTHS, DEPTH, LENGTH = (512, 1024, 2048, 4096), (2, 4, 8, 16), 6, 1024
ROOM = 512 * MIB  # in which the longest sequence is asked for
PLAIN, CHECKPOINTING, WHOLE = "plain", "checkpointing", "checkpointing, whole logits"
SPIKING, IN_TIME = (PLAIN, CHECKPOINTING, "sltt"), (2, 6, 12)


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the tables.

    Attributes:
        memory: methods, as `Task` takes them.
        model: further arguments of the model.
        whole_logits: the loss is computed from all logits, in float32, as most code does.
    """

    memory: tuple[dict[str, Any], ...] = ()
    model: tuple[tuple[str, Any], ...] = ()
    whole_logits: bool = False


CASES = {
    PLAIN: Case(),
    WHOLE: Case(({"kind": "checkpointing"},), whole_logits=True),
    CHECKPOINTING: Case(({"kind": "checkpointing"},)),
    "streambp": Case(({"kind": "streambp", "chunk_size": 256},)),
    "ssdtrain": Case(({"kind": "ssdtrain", "resident": 16 * MIB},)),
    "memo": Case(({"kind": "memo", "alpha": 0.5},)),
    "reversible": Case(({"kind": "reversible"},), (("changes", [{"kind": "reversible"}]),)),
    "coat": Case(({"kind": "coat", "states": False},)),
    "lemo": Case(({"kind": "lemo", "forget": 0.5},)),
    "streambp + ssdtrain": Case(({"kind": "streambp", "chunk_size": 256}, {"kind": "ssdtrain", "resident": 4 * MIB})),
}


def stepping(name: str, depth: int, length: int) -> Callable[[], float]:
    """A training step of a case."""
    case = CASES[name]
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=depth, **SHAPE, **dict(case.model)).train()
    memory = Lean(model, as_memories(list(case.memory)))
    optimizer = memory.optimizer(lambda model: torch.optim.SGD(model.parameters(), lr=1e-3))
    tokens = torch.arange(length)[None] % SHAPE["vocab_size"]

    def loss() -> Tensor:
        if case.whole_logits:
            return F.cross_entropy(model(tokens)[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
        return model(tokens, labels=tokens)

    def step() -> float:
        found = loss()
        found.backward()
        optimizer.step()
        memory.after_step(optimizer)
        optimizer.zero_grad()
        return float(found.detach())

    return step


def spiking(name: str, steps: int, images: int = 8) -> Callable[[], float]:
    """The gradients of a spiking network over so many steps in time."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("spiking_resnet18", time_steps=steps).train()
    Lean(model, as_memories([] if name == PLAIN else [{"kind": name}]))
    batch, classes = torch.randn(images, 3, 32, 32), torch.arange(images)

    def step() -> float:
        loss = F.cross_entropy(model(batch), classes)
        loss.backward()
        model.zero_grad()
        return float(loss.detach())

    return step


def peaks(stepping: Callable[..., Callable[[], float]], name: str, sizes: Sequence[tuple[int, ...]]) -> list[int]:
    """Bytes of a step of each size but the first, in this process, which must be fresh."""
    first, *rest = sizes
    stepping(name, *first)()  # what a process loads once is not the step's
    return [peak_memory(stepping(name, *size)) for size in rest]


def longest(lengths: Sequence[int], found: Sequence[int], room: int = ROOM) -> float:
    """Tokens at which the line through the two longest measured lengths meets ``room``."""
    (a, b), (low, high) = lengths[-2:], found[-2:]
    return b + (room - high) * (b - a) / max(1, high - low)


def measure(options: Any, tick: Callable[[str], None]) -> dict[str, Any]:
    """Everything, as the record has it."""
    by_length = [(DEPTH, length) for length in options.lengths]
    by_depth = [(depth, LENGTH) for depth in options.depths]
    found: dict[str, Any] = {"machine": machine(), "settings": {**vars(options), "room": ROOM}, "bytes": {}}
    for name in CASES:
        tick(f"memory: {name}")
        sizes = [(2, 32), *by_length, *by_depth]
        measured = in_fresh_process(peaks, stepping, name, sizes, environment=RETURNING)
        found["bytes"][name] = {"length": measured[: len(by_length)], "depth": measured[len(by_length) :]}
    tick("time")
    length = options.lengths[len(options.lengths) // 2]
    seconds, losses = interleaved({n: stepping(n, DEPTH, length) for n in CASES}, budget=options.budget, most=9)
    found |= {"timed": length, "seconds": seconds, "losses": losses}
    in_time = [(1,), *((steps,) for steps in IN_TIME)]
    peak = {n: in_fresh_process(peaks, spiking, n, in_time, environment=RETURNING) for n in SPIKING}
    seconds, _ = interleaved({n: spiking(n, IN_TIME[1]) for n in SPIKING}, budget=options.budget, most=9)
    found["spiking"] = {"steps": list(IN_TIME), "bytes": peak, "seconds": seconds}
    return found


def verdicts(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Row -> what was expected and what was found, and whether it was met."""
    lengths, depths = found["settings"]["lengths"], found["settings"]["depths"]
    reach = {name: longest(lengths, sizes["length"]) for name, sizes in found["bytes"].items()}
    taken = {name: statistics.median(runs) for name, runs in found["seconds"].items()}
    streams, ours = reach["streambp"] / reach[WHOLE], reach["streambp"] / reach[CHECKPOINTING]
    time_of = {name: taken[name] / taken[CHECKPOINTING] for name in taken}
    plain, spooled = found["bytes"][PLAIN]["length"][-1], found["bytes"]["ssdtrain"]["length"][-1]
    less, over = 1 - spooled / plain, taken["ssdtrain"] / taken[PLAIN]
    told = {
        "streambp": (
            f"2.8 to 5.5 times the length of checkpointing with whole logits ({streams:.1f}; of ours {ours:.1f}) in "
            f"comparable time ({time_of['streambp']:.2f})",
            streams >= 2.8 and time_of["streambp"] <= 1.1,
        ),
        "ssdtrain": (
            f"47 % less at almost no overhead ({less:.0%}, {over:.2f} times as long)", less >= 0.47 and over <= 1.1
        ),
        "memo": (f"less time than checkpointing ({time_of['memo']:.2f})", time_of["memo"] < 1),
    }  # fmt: skip
    for name, least in (("coat", 1.54), ("lemo", 1.93)):
        if name in found["bytes"]:
            times = plain / found["bytes"][name]["length"][-1]
            told[name] = f"{least} times less memory ({times:.2f})", times >= least
    if "reversible" in found["bytes"]:
        kept = found["bytes"]["reversible"]["depth"]
        grown = (kept[-1] - kept[0]) / (found["bytes"][PLAIN]["depth"][-1] - found["bytes"][PLAIN]["depth"][0])
        told["reversible"] = (
            f"does not grow with depth but by weights ({grown:.0%} of what plain grows by from {depths[0]} to "
            f"{depths[-1]} blocks)",
            grown <= 0.2,
        )
    spikes = found["spiking"]
    at = {name: (peak[1], statistics.median(spikes["seconds"][name])) for name, peak in spikes["bytes"].items()}
    saved, spared = (1 - at["sltt"][i] / at[PLAIN][i] for i in (0, 1))
    told["sltt"] = (
        f"over 70 % less memory ({saved:.0%}), over 50 % less time ({spared:.0%})",
        saved > 0.7 and spared > 0.5,
    )
    return told


def tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Bytes over length with time, bytes over depth, and the verdicts."""
    lengths, depths, told = found["settings"]["lengths"], found["settings"]["depths"], verdicts(found)
    taken = {name: statistics.median(runs) for name, runs in found["seconds"].items()}
    over = [
        [
            name, *(f"{size / MIB:,.0f}" for size in sizes["length"]),
            f"{longest(lengths, sizes['length']):,.0f}", f"{taken[name]:.2f}", f"{taken[name] / taken[PLAIN]:.2f}",
        ]
        for name, sizes in found["bytes"].items()
    ]  # fmt: skip
    most, spikes = found["bytes"][PLAIN]["depth"][-1], found["spiking"]
    deep = [
        [name, *(f"{size / MIB:,.0f}" for size in sizes["depth"]), f"{sizes['depth'][-1] / most:.2f}"]
        for name, sizes in found["bytes"].items()
    ]
    title = f"Peak of a training step, MiB: {DEPTH} blocks of width {SHAPE['dim']}, over the length"
    columns = [
        "method", *(f"T {length:,}" for length in lengths), f"longest in {ROOM // MIB} MiB",
        f"seconds, T {found['timed']:,}", "of plain",
    ]  # fmt: skip
    return [
        (title, columns, over),
        (f"The same over the depth, T {LENGTH:,}", ["method", *(f"{d} blocks" for d in depths), "of plain"], deep),
        (
            "Spiking ResNet-18: peak of a step, MiB, over its steps in time",
            ["method", *(f"{steps} steps" for steps in spikes["steps"]), f"seconds, {spikes['steps'][1]} steps"],
            [
                [name, *(f"{size / MIB:,.0f}" for size in sizes), f"{statistics.median(spikes['seconds'][name]):.2f}"]
                for name, sizes in spikes["bytes"].items()
            ],
        ),
        (
            "Expected", ["method", "expected (found)", "met"],
            [[name, text, "met" if met else "missed"] for name, (text, met) in told.items()],
        ),
    ]  # fmt: skip


def before(found: dict[str, Any]) -> str:
    """What is not measured."""
    *_, last, most = found["settings"]["lengths"]
    return (
        f"The longest sequence in {ROOM // MIB} MiB is not measured but extrapolated, by the line through T {last:,}\n"
        f"and T {most:,}: no longer one was run. What is expected of lengths below is of these, too.\n\n"
    )


def plot(found: dict[str, Any], path: Path) -> None:
    """Peaks over length and over depth, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    sizes = (("length", found["settings"]["lengths"]), ("depth", found["settings"]["depths"]))
    for axis, (kind, values) in zip(axes, sizes, strict=True):
        for name, peaks in found["bytes"].items():
            axis.plot(values, [size / MIB for size in peaks[kind]], marker="o", label=name)
        label = "tokens" if kind == "length" else "blocks"
        axis.set(xlabel=label, ylabel="peak of a training step, MiB", xscale="log", yscale="log")
        axis.set_xticks(values, [str(value) for value in values])
        axis.set_yticks(ticks := [50, 100, 200, 400, 800], [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("memory", __doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), help="tokens, ascending")
    parser.add_argument("--depths", nargs="+", type=int, default=list(DEPTHS), help="blocks, ascending")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of timing")
    options = parser.parse_args(arguments)
    for name in ("lengths", "depths"):
        if len(getattr(options, name)) < 2 or sorted(set(getattr(options, name))) != getattr(options, name):
            parser.error(f"--{name} must be two ascending numbers at least, got {getattr(options, name)}")
    console, started = Console(), time.perf_counter()
    with console.status("") as status:
        found = measure(options, partial(_tick, status))
    console.print(f"{time.perf_counter() - started:.0f} s", highlight=False)
    publish("memory", options, found, *tables(found), before=before(found))
    if not options.no_save:
        plot(found, RESULTS / "memory.png")


def _tick(status: Any, text: str) -> None:
    status.update(text)


if __name__ == "__main__":
    main()
