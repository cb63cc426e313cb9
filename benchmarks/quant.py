"""Weights of a few bits: what they cost in quality, in bytes and in time.

    zoo bench quant                                   # writes benchmarks/results/quant.{json,md,png}
    zoo bench quant --only transformer_nano --forms "4 bits, DGQ"        # the other rows stay as they were
    zoo bench quant --redraw                          # the tables and the plot of what was measured

Nanos with bundled weights: bits per byte of test documents, or errors on test digits, against all bytes that are
saved, for each method; text was calibrated on 32 windows of 128 bytes of the training documents, images on 64 of the
training digits. Emulated formats are scored beside torch's own casts. Then random weights of published sizes, rounded
to nearest: prefill of 256 tokens and a step after them, beside float32 and, where it is installed, llama.cpp with the
same weights, in turns; the bytes of all weights; and by how much loading a saved model and decoding raise the peak of a
process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.benchmarks import emulated
from zoo.benchmarks.common import (
    RESULTS,
    command_line,
    fresh_peak,
    machine,
    peak_memory,
    prompt_and_step,
    publish,
    telling,
)
from zoo.benchmarks.exits import correct, digits, nats, text
from zoo.benchmarks.kept import RUN, earlier_runs, held, joined
from zoo.benchmarks.peers import LlamaCpp, moments, with_tokenizer_of_bytes
from zoo.benchmarks.quant_forms import CLAIMS, IMAGES, MARKS, METHODS, NEAR, TEXT, forms_of
from zoo.benchmarks.tables import panels
from zoo.layers.quant import compressible, count_parameters, stored_bytes
from zoo.quantize import Calibration

FLOAT = "float32"
TIMED = ("transformer_130m", "mamba2_130m", "falcon_h1_tiny_90m")
PROMPT, STEPS = 256, 32
SIZES = {FLOAT: None, "8 bits": {"bits": 8}, "4 bits": {"bits": 4}, "3 bits": {"bits": 3}, "FP4": {"layout": "e2m1"}}
GGUF = {FLOAT: "f32", "8 bits": "q8_0", "4 bits": "q4_0"}  # llama.cpp's forms of the same size
PEER = "llama.cpp"
PARTS = {"quality": ("model", "form"), "emulated": ("model", "form"), "times": ("model",)}  # and what is run at a time
ORDER = [(name, form) for name in (*TEXT, *IMAGES) for form in (FLOAT, *METHODS)]


def calibration(name: str) -> Calibration:
    """Of the training split."""
    if name in IMAGES:
        return Calibration([inputs[:64] for inputs, _ in digits("train")])
    return Calibration([inputs[:, :128] for inputs, _ in text("train", windows=32)])


@torch.inference_mode()
def scored(model: Any, batches: Sequence[tuple[Any, Any]]) -> float:
    """Bits per byte of text, or the share of images that is wrong."""
    images = hasattr(model, "forward_features")
    found = [(correct if images else nats)(model(inputs), targets) for inputs, targets in batches]
    mean = sum(total for total, _ in found) / sum(count for _, count in found)
    return 100 * (1 - mean) if images else mean / math.log(2)


def qualities(name: str, forms: Sequence[str], advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """A record a form of a nano."""
    trained: Any = zoo.create_model(name, pretrained=True).eval()
    seen, tested = calibration(name), digits("test") if name in IMAGES else text("test", windows=96)
    records = []
    for form in (FLOAT, *forms):
        advance(f"{name}, {form}")
        model, started = copy.deepcopy(trained), time.perf_counter()
        if form != FLOAT:
            method, options = METHODS[form]
            zoo.quantize(model, method, calibration=seen, **options)
        seconds, size = time.perf_counter() - started, stored_bytes(model)
        records.append({
            "model": name, "form": form, "bytes": size, "bits_a_weight": 8 * size / count_parameters(model),
            "score": scored(model, tested), "seconds": seconds,
        })  # fmt: skip
    return records


def times(name: str, budget: float, advance: Callable[[str], None], more: bool = True) -> list[dict[str, Any]]:
    """A record a form of a model of random weights, and with ``more`` its peak and those of llama.cpp."""
    advance(name)
    torch.manual_seed(0)
    sides: dict[str, Any] = {FLOAT: zoo.create_model(name).eval()}
    for form, options in SIZES.items():
        if options is not None:
            sides[form] = zoo.quantize(copy.deepcopy(sides[FLOAT]), **options)
    size = {form: (stored_bytes(model), count_parameters(model)) for form, model in sides.items()}
    tokens, peaks = prompt(), {}
    calls: dict[str, Any] = {form: partial(moments, side, tokens) for form, side in sides.items()}
    with tempfile.TemporaryDirectory() as place:
        if more:
            for index, (form, model) in enumerate(sides.items()):
                peaks[form] = fresh_peak(peak, str(with_tokenizer_of_bytes(model, Path(place) / str(index))))
        for form, gguf in GGUF.items() if more and find_spec("xllamacpp") else ():
            file = zoo.convert(Path(place) / "0", Path(place) / f"{gguf}.gguf", to="gguf", form=gguf)
            peer = LlamaCpp(file, torch.get_num_threads(), PROMPT + 2 * STEPS)
            calls[f"{form}, {PEER}"], size[f"{form}, {PEER}"] = (
                partial(peer.moments, tokens),
                (peer.bytes, size[FLOAT][1]),
            )
        runs = prompt_and_step(calls, STEPS, budget)
    return [
        {
            "model": name, "form": form, "bytes": size[form][0], "bits_a_weight": 8 * size[form][0] / size[form][1],
            "prefill": runs[form][0], "steps": runs[form][1], "peak": peaks.get(form),
        }
        for form in calls
    ]  # fmt: skip


def prompt() -> torch.Tensor:
    """Tokens that every model has."""
    return torch.randint(1, 256, (1, PROMPT), generator=torch.Generator().manual_seed(0))


def peak(folder: str) -> int:
    """Bytes that loading a saved model and continuing a prompt take."""

    def run() -> None:
        model: Any = zoo.create_model(f"local-dir:{folder}").eval()
        zoo.generate(model, prompt(), 1 + STEPS, temperature=0.0)

    return peak_memory(run)


def lost(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Model -> form -> what it costs in score."""
    found: dict[str, dict[str, float]] = {}
    whole = {r["model"]: r["score"] for r in records if r["form"] == FLOAT}
    for r in records:
        found.setdefault(r["model"], {})[r["form"]] = r["score"] - whole[r["model"]]
    return found


def show_quality(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row a model and form."""
    losses, rows = lost(records), []
    for r in records:
        change = losses[r["model"]][r["form"]]
        rows.append([
            f"{r['model']}, {r['form']}", f"{r['bits_a_weight']:.2f}", f"{r['bytes'] / 1e3:.0f}",
            f"{r['score']:.3f}", "" if r["form"] == FLOAT else f"{change:+.3f}", f"{r['seconds']:.1f}",
        ])  # fmt: skip
    return ["", "bits a weight", "kB", "bits per byte or error %", "to float32", "s to make"], rows


def show_times(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row a model, form and side."""
    step = {(r["model"], r["form"]): statistics.median(r["steps"]) for r in records}
    rows = []
    for r in records:
        own, whole = (step[r["model"], form] for form in (r["form"], FLOAT))
        peer = step.get((r["model"], f"{r['form']}, {PEER}"))
        rows.append([
            f"{r['model']}, {r['form']}", f"{r['bits_a_weight']:.2f}", f"{r['bytes'] / 1e6:.0f}",
            f"{r['peak'] / 1e6:.0f}" if r.get("peak") else "", f"{statistics.median(r['prefill']) * 1e3:.0f}",
            f"{own * 1e3:.1f}", f"{whole / own:.2f}", f"{peer / own:.2f}" if peer else "",
        ])  # fmt: skip
    return ["", "bits a weight", "MB", "peak MB", "prefill ms", "step ms", "float32 / step", f"{PEER} / step"], rows


def show_claims(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row an expectation, a column a model of text; what was not measured is left out."""
    losses = {name: found for name, found in lost(records).items() if name in TEXT}
    rows = []
    for claim in CLAIMS:
        verdicts = [
            f"{found[claim.form]:+.3f} {'met' if claim.met(found) else 'missed'}" if claim.form in found else ""
            for found in losses.values()
        ]
        rows.append([f"{claim.form}: {claim.expected} ({claim.source})", *verdicts])
    return ["expected", *losses], rows


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What each form costs over the bytes of all weights: text on the left, images on the right, a colour a model."""
    look: Any = {"markersize": 11, "markeredgewidth": 0.3, "linestyle": ""}
    losses = lost(records)
    with panels(path, 1, 2, (14, 5.5)) as axes:
        text, images = axes.flat
        for axis, names, floor in ((text, TEXT, 1e-3), (images, IMAGES, 0.1)):
            for index, name in enumerate(name for name in names if name in losses):
                for r in (r for r in records if r["model"] == name and r["form"] != FLOAT):
                    place = r["bytes"] / 1e3, max(losses[name][r["form"]], floor)
                    axis.plot(*place, color=f"C{index}", marker=MARKS[r["form"]], **look)
                axis.plot([], [], "s", color=f"C{index}", label=name)
            axis.set(xscale="log", yscale="log", xlabel="kB of all weights")
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
        shown = [text.plot([], [], marker=mark, color="black", **look)[0] for mark in MARKS.values()]
        text.figure.legend(shown, list(MARKS), loc="outside right center", fontsize=8)
        text.axhline(NEAR, color="gray", linewidth=0.8)
        text.set(ylabel="bits per byte lost (0.001 and less at the bottom)")
        images.set(ylabel="points of accuracy lost (0.1 and less at the bottom)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("quant", __doc__, budget=40.0, goes_on=True)
    every = (*TEXT, *IMAGES, *TIMED)
    parser.add_argument("--only", nargs="+", default=list(every), choices=every, metavar="MODEL")
    parser.add_argument("--forms", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="FORM")
    kinds = list(emulated.KINDS)
    parser.add_argument("--emulated", nargs="*", default=kinds, choices=kinds, metavar="FORMAT", help="; ".join(kinds))
    parser.add_argument("--redraw", action="store_true", help="measure nothing: tables and plot of the result file")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options: argparse.Namespace = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    if options.redraw:
        content = json.loads((RESULTS / "quant.json").read_text(encoding="utf-8"))
        publish_all(options, {"machine": content["machine"]} | {part: content.get(part, []) for part in PARTS})
        return
    before = {part: [] if options.no_save else held("quant", part) for part in PARTS}
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    known = {(r["model"], r["form"]) for r in before["quality"]}
    jobs: dict[str, list[str]] = {}
    for name in options.only:
        forms = [] if name in TIMED else forms_of(name, options.forms)
        jobs[name] = [form for form in forms if form in options.forms or (name, form) not in known]
    cast = {name: options.emulated if name in TEXT else [] for name in options.only}
    with telling(sum(1 + len(forms) + len(cast[name]) for name, forms in jobs.items())) as say:
        for name, forms in jobs.items():
            if name in TIMED:
                found["times"] += times(name, options.budget, say)
                continue
            if forms:
                found["quality"] += qualities(name, forms, say)
            if cast[name]:
                score = partial(scored, batches=text("test", windows=96))
                found["emulated"] += emulated.measured(name, cast[name], score, say)
    record = {part: joined(before[part], found[part], keys) for part, keys in PARTS.items()}
    record["quality"].sort(key=lambda r: ORDER.index((r["model"], r["form"])))
    record["emulated"].sort(key=lambda r: (TEXT.index(r["model"]), kinds.index(r["form"])))
    record["times"].sort(key=lambda r: TIMED.index(r["model"]))
    publish_all(options, {"machine": machine(), **record})


def left(name: str) -> float:
    """Share of a model's numbers that no form makes smaller."""
    model = zoo.create_model(name, device="meta")
    weights = {id(weight): weight.numel() for weight in compressible(model).values()}
    return 1 - sum(weights.values()) / count_parameters(model)


def counted(records: Sequence[Mapping[str, Any]]) -> str:
    """What bits a weight count, and how much stays as it is."""
    names = list(dict.fromkeys(r["model"] for r in records))
    if not names:
        return ""
    return (
        "Bits a weight are 8 times all bytes that are saved over the number of parameters: codes, scales and zeros, "
        "what stays in float32 (norms, depthwise convolutions, routers, what recurrences keep), and buffers, such as "
        "the statistics of batch norms, which are bytes and no parameters. Of the parameters stay: "
        + ", ".join(f"{name} {100 * left(name):.1f} %" for name in names)
        + ".\n"
    )


def publish_all(options: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """Tables and plot of what was measured."""
    quality, here = record["quality"], record["machine"]
    threads = {r.get(RUN, here)["threads"] for r in record["times"]} or {here["threads"]}
    plain = {r["model"]: r["score"] for r in quality if r["form"] == FLOAT}
    tables = [
        ("What was expected of text, and the bits per byte lost", *show_claims(quality)),
        ("Quality of nanos", *show_quality(quality)),
        *([emulated.show(record["emulated"], plain)] if record["emulated"] else []),
        (
            f"Random weights: {PROMPT} tokens of prompt, a step after them, {' or '.join(map(str, threads))} threads",
            *show_times(record["times"]),
        ),
    ]
    after = f"{counted(quality)}\n{earlier_runs([*quality, *record['emulated'], *record['times']])}\n"
    publish("quant", options, record, *tables, after=after, plot=partial(plot, quality))
