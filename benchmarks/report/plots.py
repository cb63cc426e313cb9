"""Plots as SVG, in the colours of the page they stand in; a mark says what it is where the pointer or the focus is."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 36


class Point(NamedTuple):
    """A mark: where, what is said of it, what kind it is, and the place on the page that it leads to."""

    x: float
    y: float
    name: str
    tip: str
    kind: str
    target: str = ""


class Curve(NamedTuple):
    """A line through points of growing x."""

    xs: Sequence[float]
    ys: Sequence[float]
    name: str
    tip: str
    kind: str
    target: str = ""


class Axis(NamedTuple):
    """A title, how figures are written, whether equal steps are equal factors, and whose powers are round."""

    title: str
    show: Callable[[float], str]
    logarithmic: bool = True
    base: int = 10


class Scale:
    """From values to pixels, with round values for ticks."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float):
        self.axis, self.start, self.end = axis, start, end
        low, high = (self._inner(v) for v in (min(values), max(values)))
        room = 0.05 * (high - low) or 0.5
        self.low, self.high = low - room, high + room

    def _inner(self, value: float) -> float:
        return math.log(value, self.axis.base) if self.axis.logarithmic else value

    def __call__(self, value: float) -> float:
        return self.start + (self._inner(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """At most five or so."""
        span = self.high - self.low
        if not self.axis.logarithmic:
            step = 10 ** math.floor(math.log10(span / 3))
            step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= 5)
            yield from (step * k for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1))
            return
        every = max(1, math.ceil(span / 5))
        parts = (1,) if span > 2 or self.axis.base == 2 else (1, 3) if span > 1 else (1, 2, 5)
        for power in range(math.floor(self.low), math.ceil(self.high) + 1):
            for part in parts if power % every == 0 else ():
                if self.low <= self._inner(part * float(self.axis.base) ** power) <= self.high:
                    yield part * float(self.axis.base) ** power


def scatter(points: Sequence[Point], x: Axis, y: Axis, *, higher: bool = False, label: str = "") -> str:
    """Points and the line of those that none beats, which are named: none is as good on both axes and better on one.

    Args:
        higher: more on the y axis is better; less on the x axis always is.
        label: of the whole, for who cannot see it.
    """
    front = pareto(points, higher)

    def draw(sx: Scale, sy: Scale) -> str:
        marks = "".join(_mark(p, sx, sy, p in front) for p in points)
        return _stairs(front, sx, sy) + marks + _names(front, sx, sy, higher)

    return _frame([p.x for p in points], [p.y for p in points], x, y, label, draw)


def curves(lines: Sequence[Curve], x: Axis, y: Axis, *, label: str = "") -> str:
    """Lines over x."""
    xs, ys = ([v for line in lines for v in getattr(line, key)] for key in ("xs", "ys"))
    return _frame(xs, ys, x, y, label, lambda sx, sy: "".join(_line(line, sx, sy) for line in lines))


def pareto(points: Sequence[Point], higher: bool) -> list[Point]:
    """By growing x, those that none beats."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y if higher else p.y)):
        if not front or (point.y > front[-1].y if higher else point.y < front[-1].y):
            front.append(point)
    return front


def _frame(
    xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis, label: str, draw: Callable[[Scale, Scale], str]
) -> str:
    sx, sy = Scale(x, xs, LEFT, WIDTH - RIGHT), Scale(y, ys, HEIGHT - BOTTOM, TOP)
    parts = [f'<svg class="plot" role="group" aria-label="{html.escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">']
    for tick in sx.ticks():
        parts.append(f'<path class="grid" d="M{sx(tick):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(_text(sx(tick), HEIGHT - BOTTOM + 14, x.show(tick), "middle"))
    for tick in sy.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {sy(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 5, sy(tick) + 3.5, y.show(tick), "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x.title, "middle", "title"))
    parts.append(_text(LEFT - 40, TOP - 4, y.title, "start", "title"))
    return "".join([*parts, draw(sx, sy), "</svg>"])


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _mark(point: Point, sx: Scale, sy: Scale, best: bool) -> str:
    shape = (
        f'<circle class="{point.kind}{" best" if best else ""}" cx="{sx(point.x):.1f}" cy="{sy(point.y):.1f}" r="4"/>'
    )
    return _told(shape, point)


def _line(line: Curve, sx: Scale, sy: Scale) -> str:
    d = "M" + "L".join(f"{sx(a):.1f} {sy(b):.1f}" for a, b in zip(line.xs, line.ys, strict=True))
    return _told(f'<path class="curve {line.kind}" d="{d}"/><path class="near" d="{d}"/>', line)


def _told(shape: str, what: Point | Curve) -> str:
    """With what is said of it; a link is what the keyboard reaches."""
    tip = html.escape(f"{what.name}: {what.tip}")
    if not what.target:
        return f'<g data-tip="{tip}"><title>{tip}</title>{shape}</g>'
    return f'<a href="{what.target}" data-tip="{tip}" aria-label="{tip}">{shape}</a>'


def _names(front: Sequence[Point], sx: Scale, sy: Scale, higher: bool) -> str:
    """On the side where no mark can be: what is there would beat them."""
    written: list[tuple[float, float]] = []
    parts = []
    for point in front:
        x, y, name = sx(point.x), sy(point.y) + (-6 if higher else 13), point.name.removesuffix("_nano")
        left = x - 6 * len(name) > LEFT
        if all(abs(x - other) > 50 or abs(y - height) > 10 for other, height in written):
            written.append((x, y))
            parts.append(_text(x - 4 if left else x, y, name, "end" if left else "start", "named"))
    return "".join(parts)


def _stairs(front: Sequence[Point], sx: Scale, sy: Scale) -> str:
    if len(front) < 2:
        return ""
    d = f"M{sx(front[0].x):.1f} {sy(front[0].y):.1f}"
    return f'<path class="front" d="{d}{"".join(f"H{sx(p.x):.1f}V{sy(p.y):.1f}" for p in front[1:])}"/>'
