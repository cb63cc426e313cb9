"""`zoo profile`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from zoo.cli.errors import checked
from zoo.cli.options import add_import, completed, count, model_names, new_file, saved
from zoo.cli.output import say, show

if TYPE_CHECKING:
    from zoo.profile import Profile

HELP = "what a model costs, counted and measured"
MIB = 2**20


def add_arguments(parser: ArgumentParser) -> None:
    name = parser.add_argument("name", help="a model's name, or a folder written by zoo.save_model")
    completed(name, model_names)
    parser.add_argument("--tokens", type=int, help="length of a text or sequence (256, or as many as it reads)")
    parser.add_argument("--image-size", type=int, help="side of the images; the model's own where not given")
    parser.add_argument("--batch", type=int, default=1, help="rows (1)")
    parser.add_argument("--device", help="cpu, cuda, or meta: count without running")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (float32)")
    parser.add_argument("--no-training", action="store_true", help="leave out forward and backward")
    parser.add_argument("--runs", type=int, default=5, help="times are the median of so many (5)")
    parser.add_argument("--energy", action="store_true", help="joules of a pass and of training (RAPL, NVML)")
    parser.add_argument("--fresh-peaks", action="store_true", help="measure anew what the machine reaches at best")
    parser.add_argument("--depth", type=count, default=2, help="layers with names of so many parts at most (2)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there too")
    add_import(parser)


def run(known: Namespace) -> int:
    import torch

    import zoo

    if known.fresh_peaks:
        checked(_fresh_peaks, known)
    found = checked(
        lambda: zoo.profile(
            saved(known.name),
            tokens=known.tokens,
            image_size=known.image_size,
            batch=known.batch,
            device=known.device,
            dtype=getattr(torch, known.dtype) if known.dtype else None,
            training=False if known.no_training else None,
            runs=known.runs,
            energy=known.energy,
        )
    )
    if known.json is not None:
        checked(known.json.write_text, json.dumps(found.as_dict(), indent=1) + "\n")
    _show(found, known.depth)
    return 0


def _fresh_peaks(known: Namespace) -> None:
    import torch

    from zoo.profile import peaks
    from zoo.profile.measure import require_device

    if (device := require_device(known.device or "cpu")).type == "meta":
        raise ValueError("--fresh-peaks measures a machine, and nothing runs on meta: leave out one of them")
    peaks(device, getattr(torch, known.dtype or "float32"), fresh=True)


def _show(found: Profile, depth: int) -> None:
    from rich.table import Table

    say(
        f"{found.name}: {found.parameters:,} parameters, {found.active_parameters:,} active, "
        f"{found.weight_bytes / MIB:,.2f} MiB; {found.dtype}, inputs {found.inputs} on {found.device}"
    )
    if found.peaks is not None:
        say(f"peaks: {found.peaks.flops / 1e9:,.1f} GFLOP/s, {found.peaks.bandwidth / 1e9:,.1f} GB/s")
    if found.untrained is not None:
        say(f"no training: {found.untrained}")
    if found.doubt is not None:
        say(f"warning: {found.doubt}", stderr=True)
    if found.state_bytes:
        say("state: " + ", ".join(f"{size:,} bytes after {length} tokens" for length, size in found.state_bytes))
    phases = Table(title="phases", title_justify="left")
    for column in ("phase", "GFLOP", "MiB moved", "at least", "FLOP/byte", "MiB live", "measured", "bound ms",
                   "waterline ms", "ms", f"{found.unit}s/s", "gap", "efficiency"):  # fmt: skip
        phases.add_column(column, justify="left" if column == "phase" else "right")
    for phase in found.phases:
        phases.add_row(
            phase.name, f"{phase.flops / 1e9:,.4g}", f"{phase.bytes / MIB:,.2f}", f"{phase.least_bytes / MIB:,.2f}",
            f"{phase.intensity:,.1f}", f"{phase.memory / MIB:,.2f}", _figure(phase.measured_memory, 1 / MIB),
            _figure(phase.bound, 1e3), _figure(phase.waterline, 1e3),
            _figure(None if phase.seconds is None else phase.seconds.median, 1e3), _figure(phase.throughput),
            _figure(phase.gap),
            _efficiency(found, phase.flops, None if phase.seconds is None else phase.seconds.median),
        )  # fmt: skip
    show(phases)
    if found.peaks is not None:
        _show_metrics(found)
    layers = Table(title="layers, forward", title_justify="left")
    for column in (
        "layer",
        "kind",
        "parameters",
        "MFLOP",
        "MiB moved",
        "FLOP/byte",
        "waterline ms",
        "ms",
        "efficiency",
    ):
        layers.add_column(column, justify="left" if column in ("layer", "kind") else "right")
    for layer in found.layers:
        if layer.name and layer.name.count(".") < depth:
            layers.add_row(
                layer.name, layer.kind, f"{layer.parameters:,}", f"{layer.flops / 1e6:,.3f}",
                f"{layer.bytes / MIB:,.3f}", f"{layer.intensity:,.1f}", _figure(layer.waterline, 1e3),
                _figure(layer.seconds, 1e3), _efficiency(found, layer.flops, layer.seconds),
            )  # fmt: skip
    show(layers)


def _show_metrics(found: Profile) -> None:
    import torch
    from rich.table import Table

    from zoo.profile.measure import total_memory
    from zoo.profile.metrics import metrics

    memory = total_memory(torch.device("cuda" if torch.cuda.is_available() and "cpu" not in found.device else "cpu"))
    shown = Table(title="utilisation, compression, energy", title_justify="left")
    for column in ("phase", "of memory", "of operations", "of bandwidth", "compression", "joules"):
        shown.add_column(column, justify="left" if column == "phase" else "right")
    for phase in found.phases:
        one = metrics(found, phase.name, memory)
        shares = one.memory_utilisation, one.compute_utilisation, one.bandwidth_utilisation
        shown.add_row(phase.name, *(f"{s:.2%}" for s in shares), f"{one.compression:.2f}", _figure(one.energy))
    show(shown)
    say(f"energy: {found.energy_source}")


def _figure(value: float | None, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:,.4g}"


def _efficiency(found: Profile, flops: int, seconds: float | None) -> str:
    """Share of the peak that is reached: latency = operations / (peak x efficiency)."""
    return "-" if found.peaks is None or not seconds else f"{flops / found.peaks.flops / seconds:.1%}"
