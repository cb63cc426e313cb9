"""Every operation of ``zoo.kernels`` on this machine: time over length, roofline, memory, beside its peers in one run.

    zoo bench kernels                # writes benchmarks/results/kernels.{json,md,png}
    zoo bench kernels --only ssd rope --lengths 256 1024 --no-save
    zoo bench kernels --only lowbit_matmul binary_matmul integer_matmul minifloat_matmul sparse_matmul

What is not named stays in the result file as it was measured before; products are measured all at once.

Peers are plain torch as one would write it (``eager``), the same under ``torch.compile``, and on CUDA mamba-ssm and
flash-linear-attention where they are installed. A recurrence has no plain torch form but its step loop: our
``reference``, which is timed up to T 1024 only, and for the selective scan also the loop over slices that transformers
has, at T 1024. Bytes are those that must move once: inputs and outputs, and for
training also their gradients. The roofline is the larger of bytes over the copy bandwidth and FLOPs over the matmul
rate, both measured in the same run; inputs that fit in a large last-level cache can beat it.

Products with one matrix of few bits (``products.py``) are timed for 1, 8, 64 and 512 rows beside dense float32, on the
CPU. Expected (the goal of the project): one row takes at most 1.4 times what reading the matrix once takes with
integers of 8, 4 and 3 bits, and 64 and 512 rows take no longer than in float32, whatever the matrix is kept in.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo.benchmarks import products
from zoo.benchmarks.common import (
    MIB,
    RESULTS,
    command_line,
    in_fresh_process,
    interleaved,
    machine,
    medians,
    over_length,
    peak_memory,
    publish,
    telling,
)
from zoo.benchmarks.decode import bandwidth
from zoo.benchmarks.kept import earlier_runs, held, joined
from zoo.benchmarks.measures import MEASURES, cost, forward, on_device, training
from zoo.benchmarks.subjects import SUBJECTS, Subject
from zoo.benchmarks.tables import Shown, panels
from zoo.kernels import available_implementations

OURS, REFERENCE = "zoo", "reference"
LENGTHS = {"cpu": (256, 512, 1024, 2048, 4096, 8192), "cuda": (512, 1024, 2048, 4096, 8192, 16384, 32768)}
COMPARED = 1024  # the length at which every implementation and the memory are measured
LONGEST_REFERENCE = 1024
SHORTEST = 0.02  # seconds of a timed run
PARTS = {"records": ("peaks",), "products": ()}  # of a result file, and what else of it belongs to each record


def sides(subject: Subject, length: int, device: str, compiled: bool) -> dict[str, Callable[..., Any]]:
    """What is timed at a length: our automatic choice, at ``COMPARED`` every other one, and the peers."""
    ours, *others = available_implementations(subject.operation, device)
    calls: dict[str, Callable[..., Any]] = {OURS: partial(subject.call, impl=ours)}
    if length == COMPARED:
        calls |= {name: partial(subject.call, impl=name) for name in others}
        calls |= subject.loops
    elif length < LONGEST_REFERENCE:
        calls[REFERENCE] = partial(subject.call, impl=REFERENCE)
    calls |= subject.peers
    if device == "cuda":
        calls |= subject.cuda_peers
    if compiled and length == COMPARED:
        calls |= {f"compiled {name}": torch.compile(call) for name, call in subject.peers.items()}
    return calls


def peaks(device: str) -> dict[str, float]:
    """Copy bandwidth in bytes/s (read and write) and matmul FLOP/s of this device, measured."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    source = torch.ones(2**28 if device == "cpu" else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    calls = {"bytes": lambda **_: target.copy_(source), "flops": lambda **_: a @ b}
    runs, _ = interleaved({name: partial(forward, call, {}) for name, call in calls.items()}, budget=2)
    best = {name: min(taken) for name, taken in runs.items()}
    return {"bytes/s": 2 * source.nbytes / best["bytes"], "FLOP/s": 2 * size**3 / best["flops"]}


def memory(name: str, side: str) -> int:
    """Peak bytes of a training call at ``COMPARED`` above its inputs, on the CPU; call it in a fresh process."""
    subject = next(s for s in SUBJECTS if s.name == name)
    call = subject.peers.get(side) or partial(subject.call, impl=REFERENCE if side == REFERENCE else "auto")
    inputs = on_device(subject, COMPARED, "cpu")
    training(call, on_device(subject, COMPARED // 2, "cpu"))  # what a process loads once is not the call's
    return peak_memory(partial(training, call, inputs))


def measure_subject(
    subject: Subject, lengths: Sequence[int], device: str, budget: float, compiled: bool, tick: Callable[[str], None]
) -> list[dict]:
    """One record per length and measure: seconds of each side, bytes, FLOPs, and how far the sides differ."""
    records = []
    for length in lengths:
        inputs = on_device(subject, length, device)
        calls = sides(subject, length, device, compiled)
        for measure, run in MEASURES.items():
            tick(f"{subject.name} T {length}: {measure}")
            for name in [name for name in calls if name.startswith("compiled")]:
                run(calls[name], inputs)  # compilation is not the call's
            runs, results = interleaved(
                {n: partial(run, c, inputs) for n, c in calls.items()}, budget=budget, shortest=SHORTEST
            )
            moved, flops = cost(subject, inputs, measure)
            ours = results[OURS].double()
            apart = max((r.double() - ours).abs().max().item() for r in results.values()) / ours.abs().max().item()
            records.append(
                {"name": subject.name, "length": length, "measure": measure, "runs": runs, "bytes": moved,
                 "flops": flops, "apart": apart}
            )  # fmt: skip
    if subject.decodes:
        tick(f"{subject.name}: decode step")
        inputs = on_device(subject, 1, device)
        output = subject.call(**inputs)
        inputs["initial_state"] = output.final_state
        runs, _ = interleaved({OURS: partial(forward, subject.call, inputs)}, budget=budget, shortest=SHORTEST)
        records.append({"name": subject.name, "length": 1, "measure": "decode", "runs": runs})
    return records


def show_comparison(records: list[dict], roof: dict[str, float]) -> tuple[list[str], list[list[str]]]:
    """At ``COMPARED``: our time, what it reaches, and every other side as a ratio to it."""
    rows = []
    for r in (r for r in records if r["length"] == COMPARED):
        seconds = medians(r["runs"])
        ours = seconds.pop(OURS)
        peak = r.get("peaks", roof)
        bound = max(r["bytes"] / peak["bytes/s"], r["flops"] / peak["FLOP/s"])
        rows.append(
            [
                f"{r['name']}, {r['measure']}",
                f"{ours * 1e3:.2f}",
                f"{r['bytes'] / ours / 1e9:.1f}",
                f"{r['flops'] / ours / 1e9:.1f}",
                f"{bound / ours:.0%}",
                ", ".join(f"{side} {taken / ours:.2f}x" for side, taken in seconds.items()),
                f"{r['apart']:.0e}",
            ]
        )
    return ["operation", "ms", "GB/s", "GFLOP/s", "of roofline", "others' time / ours", "difference"], rows


def show_lengths(records: list[dict], lengths: Sequence[int]) -> Shown:
    curves: dict[str, list[float]] = {}
    for name, measure in dict.fromkeys((r["name"], r["measure"]) for r in records if r["measure"] != "decode"):
        found = {r["length"]: r for r in records if (r["name"], r["measure"]) == (name, measure)}
        curves[f"{name}, {measure}"] = [statistics.median(found[length]["runs"][OURS]) for length in lengths]
    return over_length("operation", lengths, curves)


def show_decode(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    rows = [[r["name"], f"{statistics.median(r['runs'][OURS]) * 1e6:.0f}"] for r in records if r["measure"] == "decode"]
    return ["operation", "us a step"], rows


def show_memory(peak: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, found in peak.items():
        (other, theirs), ours = next(item for item in found.items() if item[0] != OURS), found[OURS]
        rows.append([name, f"{ours / MIB:.1f}", f"{other} {theirs / MIB:.1f}", f"{ours / theirs:.2f}"])
    return ["operation", "zoo, MiB", "peer, MiB", "zoo / peer"], rows


def plot(records: list[dict], path: Path) -> None:
    """Time over length of every side, one panel an operation: forward solid, training dashed."""
    names = list(dict.fromkeys(r["name"] for r in records))
    rows = -(-len(names) // 4)
    with panels(path, rows, 4, (16, 3.2 * rows)) as axes:
        for axis, name in zip(axes.flat, names, strict=False):
            for measure, style in (("forward", "-"), ("training", "--")):
                found = [r for r in records if r["name"] == name and r["measure"] == measure]
                shown = dict.fromkeys(side for r in found for side in r["runs"])
                for index, side in enumerate(shown):
                    points = [(r["length"], statistics.median(r["runs"][side])) for r in found if side in r["runs"]]
                    x, y = zip(*points, strict=True)
                    label = side if measure == "forward" else None
                    axis.plot(x, [s * 1e3 for s in y], style, marker="o", ms=3, color=f"C{index}", label=label)
            axis.set(xscale="log", yscale="log", title=name, xlabel="T", ylabel="ms")
            lengths = sorted({r["length"] for r in records if r["name"] == name and r["measure"] != "decode"})
            axis.set_xticks(lengths, [str(length) for length in lengths])
            axis.minorticks_off()
            axis.legend(fontsize=7)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("kernels", __doc__, budget=1.5, goes_on=True)
    names = [*(subject.name for subject in SUBJECTS), *products.OPERATIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="OPERATION", help=", ".join(names))
    parser.add_argument("--device", choices=tuple(LENGTHS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", nargs="+", type=int, help="default: 256 to 8192 on the CPU, 512 to 32768 on CUDA")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile of the peers")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--memory-only", action="store_true", help="measure peak memory anew for the saved results")
    options = parser.parse_args(arguments)

    lengths = options.lengths or LENGTHS[options.device]
    chosen = [subject for subject in SUBJECTS if subject.name in options.only]
    wanted = options.device == "cpu" and any(name in options.only for name in products.OPERATIONS)
    name = "kernels" if options.device == "cpu" else f"kernels_{options.device}"
    records: list[dict] = []
    found: list[dict] = []
    peak: dict[str, dict[str, int]] = {}
    here, roof = machine(), {}
    before = {part: [] if options.no_save else held(name, part, also) for part, also in PARTS.items()}
    if options.memory_only:
        saved = json.loads((RESULTS / "kernels.json").read_text(encoding="utf-8"))
        roof, here, wanted = saved["peaks"], saved["machine"], False
        before = {part: saved.get(part, []) for part in PARTS}
    with telling() as say:
        say("measuring peaks")
        roof = roof or peaks(options.device)
        for subject in chosen:
            if not options.memory_only:
                compiled = not options.no_compile
                records += measure_subject(subject, lengths, options.device, options.budget, compiled, say)
            if options.device == "cpu" and not options.no_memory:
                say(f"{subject.name}: memory")
                pair = (OURS, next(iter(subject.peers), REFERENCE))
                peak[subject.name] = {side: in_fresh_process(memory, subject.name, side) for side in pair}
        if wanted:
            found += products.measured(bandwidth(torch.get_num_threads()), options.budget, say)
    records = joined(before["records"], [r | {"peaks": roof} for r in records], ("name",))
    found = joined(before["products"], found, ())  # all are of one run
    peak = ({} if options.no_save else memory_of(name)) | peak
    publish_all(name, options, {"machine": here, "peaks": roof, "records": records, "products": found, "memory": peak})


def memory_of(name: str) -> dict[str, dict[str, int]]:
    """What earlier runs have found of peak memory."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["memory"] if path.exists() else {}


def publish_all(name: str, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Tables and plot of what was measured."""
    records, roof = found["records"], found["peaks"]
    timed = [r for r in records if r["measure"] != "decode"]
    measured = [{r["length"] for r in timed if r["name"] == one} for one in dict.fromkeys(r["name"] for r in timed)]
    shared = sorted(set.intersection(*measured)) if measured else []
    tables = [
        (f"Kernels at T {COMPARED}, {'float32' if options.device == 'cpu' else 'bfloat16'}",
         *show_comparison(records, roof)),
        show_lengths(records, shared),
        ("Decode step", *show_decode(records)),
        (f"Peak memory of forward and backward at T {COMPARED}", *show_memory(found["memory"])),
        *([products.show(found["products"]), products.show_scaled(found["products"])] if found["products"] else []),
    ]  # fmt: skip
    after = f"Peaks of this run: {roof['bytes/s'] / 1e9:.1f} GB/s, {roof['FLOP/s'] / 1e9:.0f} GFLOP/s. "
    after += f"{earlier_runs([*records, *found['products']])}\n"
    publish(name, options, found, *tables, after=after, plot=partial(plot, records) if records else None)
