"""Weights of a few bits: what they cost in quality, in bytes and in time.

    zoo bench quant                                   # writes benchmarks/results/quant.{json,md,png}
    zoo bench quant --only transformer_nano vit_nano --no-save

Nanos with bundled weights: bits per byte of test documents, or errors on test digits, against all bytes that are
saved, for each method; text was calibrated on 32 windows of 128 bytes of the training documents, images on 64 of the
training digits. Then random weights of published sizes, rounded to nearest: prefill of 256 tokens and a step after
them, beside float32, in turns; and the bytes of the weights, which is what they take in memory.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import zoo
from zoo.benchmarks.common import command_line, prompt_and_step, publish, telling
from zoo.benchmarks.exits import correct, digits, nats, text
from zoo.benchmarks.tables import panels
from zoo.layers.quant import count_parameters, stored_bytes
from zoo.quantize import Calibration

FLOAT = "float32"
TEXT = ("transformer_nano", "mamba2_nano", "falcon_h1_nano", "moe_nano")
IMAGES = ("vit_nano", "vim_nano", "vovnet_nano")
TIMED = ("transformer_130m", "mamba2_130m", "falcon_h1_tiny_90m")
PROMPT, STEPS = 256, 32
ROW = 1 << 20  # a group as long as any row
NEAR = 0.03  # bits per byte
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "8 bits": ("rtn", {"bits": 8}),
    "4 bits": ("rtn", {"bits": 4}),
    "4 bits, SmoothQuant+": ("smoothquant_plus", {"bits": 4, "steps": 10}),
    "4 bits a row": ("rtn", {"bits": 4, "group_size": ROW, "symmetric": True}),
    "4 bits a row, EasyQuant": ("easyquant", {"bits": 4, "group_size": ROW, "symmetric": True}),
    "FP4": ("rtn", {"layout": "e2m1"}),
    "FP4, LowBitFP": ("lowbit_fp", {"layout": "e2m1", "steps": 60}),
    "3 bits": ("rtn", {"bits": 3}),
    "3 bits, OmniQuant": ("omniquant", {"bits": 3, "epochs": 5}),
    "3 bits, BAQ": ("baq", {"bits": 3}),
    "2 bits": ("rtn", {"bits": 2}),
    "2 bits, OmniQuant": ("omniquant", {"bits": 2, "epochs": 5}),
    "3 bits, TopKLD": ("topkld", {"bits": 3, "epochs": 5}),
    "2 bits, TopKLD": ("topkld", {"bits": 2, "epochs": 10, "lr": 1e-3}),
    "4 bits, D2MoE": ("d2moe", {"bits": 4}),
    "3 bits a row": ("rtn", {"bits": 3, "group_size": ROW}),
    "3 bits a row, sketch": ("sketch", {"bits": 3, "group_size": ROW}),
}
ONLY = {"4 bits, D2MoE": ("moe_nano",)}  # others have no experts
SLOW = ("4 bits, SmoothQuant+", "3 bits, OmniQuant", "2 bits, OmniQuant", "3 bits, BAQ")  # of images: not measured
SIZES = {FLOAT: None, "8 bits": {"bits": 8}, "4 bits": {"bits": 4}, "3 bits": {"bits": 3}, "FP4": {"layout": "e2m1"}}


class Claim(NamedTuple):
    """What is expected of text, by whom, and whether the bits per byte lost by each form of a model meet it."""

    form: str
    expected: str
    source: str
    met: Callable[[Mapping[str, float]], bool]


def less(form: str, other: str, share: float = 1.0) -> Callable[[Mapping[str, float]], bool]:
    """At most that share of what the other form loses; it is measured beside."""
    return lambda lost: lost[form] <= share * lost[other]


CLAIMS = [
    Claim("4 bits", f"at most {NEAR} lost", "the project's goal", lambda lost: lost["4 bits"] <= NEAR),
    Claim(
        "4 bits, SmoothQuant+", "at most 0.01 lost", "lossless: arXiv 2312.03788, abstract",
        lambda lost: lost["4 bits, SmoothQuant+"] <= 0.01,
    ),
    Claim(
        "4 bits a row, EasyQuant", "0.54 of rounding's loss", "LLaMA-7B: 6.29, 6.01, float 5.68; 2403.02775",
        less("4 bits a row, EasyQuant", "4 bits a row", 0.54),
    ),
    Claim(
        "FP4, LowBitFP", "less lost than with integers of 4 bits", "arXiv 2408.06995, abstract",
        less("FP4, LowBitFP", "4 bits"),
    ),
    Claim("3 bits, OmniQuant", "less lost than by rounding", "arXiv 2308.13137", less("3 bits, OmniQuant", "3 bits")),
    Claim("2 bits, OmniQuant", "less lost than by rounding", "arXiv 2308.13137", less("2 bits, OmniQuant", "2 bits")),
    Claim(
        "3 bits, BAQ", "half of rounding's loss", "perplexities up to 56 times lower than GPTQ's: arXiv 2506.05664",
        less("3 bits, BAQ", "3 bits", 0.5),
    ),
    Claim(
        "3 bits, TopKLD", "no more lost than with 4 bits to nearest", "one level better: arXiv 2501.06218, abstract",
        less("3 bits, TopKLD", "4 bits"),
    ),
    Claim(
        "2 bits, TopKLD", "no more lost than with 3 bits to nearest", "one level better: arXiv 2501.06218, abstract",
        less("2 bits, TopKLD", "3 bits"),
    ),
    Claim(
        "4 bits, D2MoE", "at most 0.02 more lost than with 4 bits", "perplexity 4.09, INT8 4.04: arXiv 2504.15299",
        lambda lost: lost["4 bits, D2MoE"] <= lost["4 bits"] + 0.02,
    ),
    Claim(
        "3 bits a row, sketch", "less lost than by rounding", "this project",
        less("3 bits a row, sketch", "3 bits a row"),
    ),
]  # fmt: skip


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


def times(name: str, budget: float, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """A record a form of a model of random weights."""
    advance(name)
    torch.manual_seed(0)
    plain: Any = zoo.create_model(name).eval()
    models = {FLOAT: plain}
    for form, options in SIZES.items():
        if options is not None:
            models[form] = zoo.quantize(copy.deepcopy(plain), **options)
    tokens = torch.randint(1, 256, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    calls = {form: partial(zoo.generate, model, tokens, temperature=0.0) for form, model in models.items()}
    runs = prompt_and_step(calls, STEPS, budget)
    return [
        {
            "model": name, "form": form, "bytes": stored_bytes(model), "prefill": runs[form][0],
            "bits_a_weight": 8 * stored_bytes(model) / count_parameters(model), "steps": runs[form][1],
        }
        for form, model in models.items()
    ]  # fmt: skip


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
    """A row a model and form."""
    whole = {r["model"]: statistics.median(r["steps"]) for r in records if r["form"] == FLOAT}
    rows = []
    for r in records:
        step = statistics.median(r["steps"])
        rows.append([
            f"{r['model']}, {r['form']}", f"{r['bits_a_weight']:.2f}", f"{r['bytes'] / 1e6:.0f}",
            f"{statistics.median(r['prefill']) * 1e3:.0f}", f"{step * 1e3:.1f}", f"{whole[r['model']] / step:.2f}",
        ])  # fmt: skip
    return ["", "bits a weight", "MB", "prefill ms", "step ms", "float32 / step"], rows


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
    """What each form costs over its bits a weight: text on the left, images on the right, a colour a model."""
    kinds = list(METHODS)
    marks = dict(zip(kinds, "oosspPvXD^d<>*hHx8"[: len(kinds)], strict=False))
    losses = lost(records)
    with panels(path, 1, 2, (14, 5)) as axes:
        text, images = axes.flat
        for axis, names in ((text, TEXT), (images, IMAGES)):
            for index, name in enumerate(name for name in names if name in losses):
                for r in (r for r in records if r["model"] == name and r["form"] != FLOAT):
                    filled = f"C{index}" if METHODS[r["form"]][0] != "rtn" else "none"
                    axis.plot(
                        r["bytes"] / 1e3, max(losses[name][r["form"]], 1e-3), marks[r["form"]], color=f"C{index}",
                        markerfacecolor=filled,
                    )  # fmt: skip
                axis.plot([], [], "s", color=f"C{index}", label=name)
            axis.set(xscale="log", yscale="log", xlabel="kB of all weights")
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
        shown = [text.plot([], [], mark, color="black", markerfacecolor="none")[0] for mark in marks.values()]
        text.figure.legend(shown, list(marks), loc="outside right center", fontsize=8)
        text.axhline(NEAR, color="gray", linewidth=0.8)
        text.set(
            ylabel="bits per byte lost (0.001 and less at the bottom)", title="filled: by a method, open: to nearest"
        )
        images.set(ylabel="points of accuracy lost")


def forms_of(name: str, wanted: Sequence[str]) -> list[str]:
    """Those of a model among the wanted, in order, and to nearest what a wanted one is compared with."""
    beside = {
        "4 bits a row, EasyQuant": "4 bits a row", "FP4, LowBitFP": "4 bits", "3 bits, TopKLD": "4 bits",
        "2 bits, TopKLD": "3 bits", "3 bits a row, sketch": "3 bits a row",
    }  # fmt: skip
    compared = {beside.get(form, form.partition(",")[0]) for form in wanted}
    able = [form for form in METHODS if name in ONLY.get(form, (name,)) and (name in TEXT or form not in SLOW)]
    return [form for form in able if form in {*wanted, *compared}]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("quant", __doc__, budget=25.0)
    every = (*TEXT, *IMAGES, *TIMED)
    parser.add_argument("--only", nargs="+", default=list(every), choices=every, metavar="MODEL")
    parser.add_argument("--forms", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="FORM")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options: argparse.Namespace = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    quality, timed = [], []
    jobs = {name: 1 + len(forms_of(name, options.forms)) if name not in TIMED else 1 for name in options.only}
    with telling(sum(jobs.values())) as say:
        for name in options.only:
            if name in TIMED:
                timed += times(name, options.budget, say)
            else:
                quality += qualities(name, forms_of(name, options.forms), say)
    tables = [
        ("What was expected of text, and the bits per byte lost", *show_claims(quality)),
        ("Quality of nanos", *show_quality(quality)),
        (
            f"Random weights: {PROMPT} tokens of prompt, a step after them, {options.threads} threads",
            *show_times(timed),
        ),
    ]
    publish("quant", options, {"quality": quality, "times": timed}, *tables, plot=partial(plot, quality))
