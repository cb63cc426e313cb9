"""Which plots the page has, and the picture of README: what is bought at what cost, and how cost grows with length."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.benchmarks.common import fitted_exponent
from zoo.benchmarks.report import figures
from zoo.benchmarks.report.models import BETTER_HIGH, Row
from zoo.benchmarks.report.plots import Axis, Curve, Point, curves, scatter
from zoo.benchmarks.report.results import Results

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Picture:
    """A plot and what is said of it."""

    title: str
    note: str
    svg: str


PARAMETERS = Axis("parameters", figures.count)
FLOPS = Axis("FLOPs a token", figures.scaled)
STATE = Axis("bytes of state", figures.size, base=2)
LATENCY = Axis("seconds of a forward pass", figures.seconds)
TOKENS = Axis("tokens", lambda value: f"{value:,.0f}", base=2)
COSTS: tuple[tuple[Axis, Callable[[Row], float | None]], ...] = (
    (FLOPS, lambda row: row.flops),
    (PARAMETERS, lambda row: row.parameters),
    (STATE, lambda row: row.state),
    (LATENCY, lambda row: row.latency),
)
TASKS = (
    ("language", "bits_per_byte", "bits a byte of Python's documentation", "token"),
    ("image-classification", "accuracy", "accuracy on the test digits", "image"),
)


def pareto(rows: Iterable[Row]) -> list[Picture]:
    """Scores of the bundled weights against what they cost; what has no figure has no point."""
    found, rows = [], list(rows)
    for task, metric, title, item in TASKS:
        scored = [r for r in rows if r.entry.task == task and r.score is not None and r.score.metric == metric]
        for axis, cost in COSTS:
            points = [
                Point(x, row.score.value, row.name, f"{row.score}, {axis.show(x)}", row.kind, target(row))
                for row in scored
                if (x := cost(row)) and row.score is not None
            ]
            if len(points) > 1:
                axis = axis._replace(title=axis.title.replace("token", item))
                shown = Axis(title, lambda value: f"{value:.3g}", logarithmic=False)
                svg = scatter(points, axis, shown, higher=metric in BETTER_HIGH, label=f"{title} against {axis.title}")
                found.append(
                    Picture(f"{title[0].upper()}{title[1:]} against {axis.title}", f"{len(points)} models", svg)
                )
    return found


def growth(results: Results, kinds: dict[str, Row]) -> list[Picture]:
    """What a longer text costs: counted FLOPs and state of the nanos, and seconds where they were measured."""
    found = []
    counted = results.records("costs", "over_length", "name", "lengths", "flops", "state")
    counted = [r for r in counted if r["name"] in kinds]
    for key, axis in (("flops", Axis("FLOPs of a forward pass", figures.scaled)), ("state", STATE)):
        lines = [_curve(r["name"], r["lengths"], r[key], axis, kinds) for r in counted if min(r[key])]
        if lines:
            found.append(
                Picture(
                    f"{axis.title} against tokens",
                    "counted, nano models",
                    curves(lines, TOKENS, axis, label=axis.title),
                )
            )
    lengths = (512, 1024, 2048, 4096, 8192)
    timed = [
        r for r in results.records("families", "over_length", "family", "seconds") if len(r["seconds"]) == len(lengths)
    ]
    lines = [_curve(f"{r['family']}_nano", lengths, r["seconds"], LATENCY, kinds) for r in timed]
    lines = [line for line in lines if line.target]
    if lines:
        svg = curves(lines, TOKENS, LATENCY, label="seconds against tokens")
        found.append(Picture("Seconds of a forward pass against tokens", results.measured_on("families"), svg))
    return found + _pixels(results)


def _pixels(results: Results) -> list[Picture]:
    """Vim beside DeiT."""
    records = [r for r in results.records("resolution", "records", "width", "pixels", "runs") if r["width"] == "tiny"]
    if len(records) < 2:
        return []
    pixels = [r["pixels"] for r in records]
    axis = Axis("pixels a side", lambda value: f"{value:,.0f}", base=2)
    lines = []
    for side in records[0]["runs"]:
        taken = [statistics.median(r["runs"][side]) for r in records]
        kind = "constant" if side == "vim" else "growing"
        tip = f"exponent {fitted_exponent([p * p for p in pixels], taken):.2f} over the number of pixels"
        lines.append(Curve(pixels, taken, f"{side}, tiny", tip, kind, "#family-vim" if side == "vim" else ""))
    svg = curves(lines, axis, LATENCY, label="seconds against resolution")
    return [
        Picture(
            "Vim and timm's DeiT: seconds of an image against pixels a side", results.measured_on("resolution"), svg
        )
    ]


def _curve(name: str, xs: Sequence[float], ys: Sequence[float], axis: Axis, kinds: dict[str, Row]) -> Curve:
    tip = f"exponent {fitted_exponent(xs, ys):.2f}, {axis.show(ys[-1])} at {xs[-1]:,}"
    row = kinds.get(name)
    return Curve(xs, ys, name, tip, row.kind if row else "other", target(row) if row else "")


def own_growth(name: str, record: dict, kind: str) -> list[Picture]:
    """Those of one model."""
    found = []
    for key, axis in (("flops", Axis("FLOPs of a forward pass", figures.scaled)), ("state", STATE)):
        if min(record[key]):
            exponent = fitted_exponent(record["lengths"], record[key])
            line = Curve(record["lengths"], record[key], name, f"exponent {exponent:.2f}", kind)
            svg = curves([line], TOKENS, axis, label=f"{axis.title} against tokens")
            found.append(Picture(f"{axis.title} against tokens", f"exponent {exponent:.2f}", svg))
    return found


def overview(rows: Iterable[Row], results: Results) -> str:
    """The picture of README: scores of the language models against their FLOPs, and state against length; of what the
    committed files have counted."""
    rows = [row for row in rows if row.entry.task == "language" and row.flops]
    kinds = {row.name: row for row in rows}
    pictures = [pareto(rows)[0], next(p for p in growth(results, kinds) if p.title.startswith(STATE.title))]
    titles = "Bundled language models: score against cost", "What they remember of a text"
    style = (HERE / "page.css").read_text(encoding="utf-8")
    still = (line for line in style.splitlines() if line.startswith(".plot") and "focus" not in line)
    style = style[: style.index("* {")] + "\n".join(still)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 330" width="800" height="330" role="img" '
        f'aria-label="{". ".join(titles)}"><style>{style}</style>'
    ]
    for place, (title, picture) in enumerate(zip(titles, pictures, strict=True)):
        x = 20 + 400 * place
        inner = picture.svg.replace('class="plot"', f'class="plot" x="{x}" y="36" width="360" height="270"')
        parts.append(
            f'<g class="plot"><text class="title" style="font-size:13px" x="{x + 6}" y="22">{title}</text></g>'
        )
        parts.append(re.sub(r"<title>.*?</title>| (?:href|data-tip|aria-label)=\"[^\"]*\"", "", inner))
    key = ("constant", "state of constant size"), ("growing", "state that grows with the text")
    for place, (kind, text) in enumerate(key):
        x = 30 + 180 * place
        parts.append(f'<g class="plot"><circle class="{kind}" cx="{x}" cy="318" r="4"/>')
        parts.append(f'<text x="{x + 9}" y="322">{text}</text></g>')
    return "".join([*parts, "</svg>\n"])


def target(row: Row) -> str:
    """The place of its family."""
    return f"#family-{row.entry.family}"
