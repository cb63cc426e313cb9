"""Vision models over resolution: Vim, whose cost is linear in the patches, beside timm's DeiT of the same width.

    zoo bench resolution              # writes benchmarks/results/resolution.json, resolution.md and resolution.png
    zoo bench resolution --widths tiny --pixels 224 512 --no-save

Features of one square image, of random weights, without gradients, in float32. DeiT runs twice: with the score matrix
of each head written out, as the models of the papers did, and with torch's fused attention, which keeps no such matrix.
The paper (arXiv 2401.09417) has Vim-Ti beside DeiT-Ti at 1248 pixels on a GPU: 2.8 times as fast, 86.8 % less memory.
Seconds are taken in turns; peak memory above weights and image is that of a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.common import (
    MIB,
    command_line,
    each,
    fitted_exponent,
    forward,
    fresh_peak,
    interleaved,
    medians,
    peak_memory,
    publish,
)
from zoo.benchmarks.tables import panels

WIDTHS = ("tiny", "small")
PIXELS = (224, 512, 768, 1024, 1248)
PLAIN, FUSED, OURS = "deit, plain attention", "deit, fused attention", "vim"
SIDES = (PLAIN, FUSED, OURS)


def build(side: str, width: str, pixels: int) -> nn.Module:
    """A model of random weights in eval mode."""
    import timm

    torch.manual_seed(0)
    if side == OURS:
        return zoo.create_model(f"vim_{width}", img_size=pixels).eval()
    model = timm.create_model(f"deit_{width}_patch16_224", img_size=pixels).eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", side == FUSED)  # noqa: B010 (no attribute of all modules)
    return model


def features(model: Any, image: Tensor) -> Tensor:
    return forward(model.forward_features, image)


def memory(side: str, width: str, pixels: int) -> int:
    """Peak bytes of one pass, in a process that has run a smaller model of the kind."""
    small = build(side, width, 64)
    features(small, torch.randn(1, 3, 64, 64))
    model, image = build(side, width, pixels), torch.randn(1, 3, pixels, pixels)
    return peak_memory(partial(features, model, image))


def measure(width: str, pixels: int, budget: float, least: int = 3) -> dict[str, Any]:
    """Seconds of every run, ``least`` of them, and peak bytes of each side at one resolution."""
    image = torch.randn(1, 3, pixels, pixels)
    calls = {side: partial(features, build(side, width, pixels), image) for side in SIDES}
    runs, _ = interleaved(calls, budget=budget, least=least)
    peaks = {side: fresh_peak(memory, side, width, pixels) for side in SIDES}
    return {"width": width, "pixels": pixels, "runs": runs, "bytes": peaks}


def show(records: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for r in records:
        taken, peaks = medians(r["runs"]), r["bytes"]
        rows.append(
            [
                f"{r['width']}, {r['pixels']} px",
                *(f"{taken[side]:.3f}" for side in SIDES),
                *(f"{taken[side] / taken[OURS]:.2f}x" for side in SIDES[:2]),
                *(f"{peaks[side] / MIB:,.0f}" for side in SIDES),
                *(f"{1 - peaks[OURS] / peaks[side]:.1%}" for side in SIDES[:2]),
                str(min(map(len, r["runs"].values()))),
            ]
        )
    times, sizes = ([f"{side}, {unit}" for side in SIDES] for unit in ("s", "MiB"))
    return [
        "model", *times, "vim over plain", "over fused", *sizes, "less than plain", "less than fused", "runs"
    ], rows  # fmt: skip


def show_growth(records: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Exponents of time and memory over the number of pixels, whose square root is the resolution."""
    rows = []
    for width in dict.fromkeys(r["width"] for r in records):
        found = [r for r in records if r["width"] == width]
        areas = [r["pixels"] ** 2 for r in found]
        for side in SIDES:
            time = fitted_exponent(areas, [medians(r["runs"])[side] for r in found])
            rows.append(
                [f"{width}, {side}", f"{time:.2f}", f"{fitted_exponent(areas, [r['bytes'][side] for r in found]):.2f}"]
            )
    return ["model", "exponent of time", "of memory"], rows


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory over resolution, one line a side and width."""
    with panels(path, 1, 2, (12, 4.5)) as axes:
        time, memory = axes.flat
        for line, width in zip(("-", "--"), dict.fromkeys(r["width"] for r in records), strict=False):
            found = [r for r in records if r["width"] == width]
            pixels = [r["pixels"] for r in found]
            for index, side in enumerate(SIDES):
                style = {"color": f"C{index}", "linestyle": line, "marker": "o", "label": f"{side}, {width}"}
                time.plot(pixels, [medians(r["runs"])[side] for r in found], **style)
                memory.plot(pixels, [r["bytes"][side] / MIB for r in found], **style)
        for axis, label in ((time, "seconds an image"), (memory, "peak memory, MiB")):
            axis.set(xlabel="pixels a side", ylabel=label, yscale="log")
            axis.legend(fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("resolution", __doc__, budget=10.0)
    parser.add_argument("--widths", nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--pixels", nargs="+", type=int, default=list(PIXELS), help="multiples of 16")
    options = parser.parse_args(arguments)
    if wrong := [pixels for pixels in options.pixels if pixels < 16 or pixels % 16]:
        parser.error(f"pixels must be multiples of the 16 of a patch, got {wrong[0]}")

    jobs = [(width, pixels) for width in options.widths for pixels in options.pixels]
    records = [measure(*job, options.budget) for job in each(jobs)]
    tables = [("Features of one image, float32", *show(records))]
    if len(options.pixels) > 1:
        tables.append(("Growth over the number of pixels", *show_growth(records)))
    publish("resolution", options, {"records": records}, *tables, plot=partial(plot, records))
