"""A drawing of a model, made from its modules as they run: boxes in boxes, in the order of the forward pass.

Modules that read the same tensor stand side by side; alike neighbours are drawn once with their number; a structure
that was drawn before is named only.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.profile.sample import answer, sample

WIDTH, LINE, PAD, GAP, LETTER, BOLD = 350.0, 24.0, 8.0, 9.0, 6.1, 6.6
SIDE_BY_SIDE = 4  # at most
SILENT = ("Identity", "Dropout", "DropPath")
LISTS = ("ModuleList", "Sequential")


@dataclass
class Box:
    """A module: its name, what it is, and rows of what runs inside it."""

    name: str
    kind: str
    detail: str
    parameters: str
    rows: list[list[Box]] = field(default_factory=list)
    times: int = 1

    @property
    def shape(self) -> tuple:
        """Equal for boxes whose drawing is the same but for names."""
        return self.kind, self.detail, self.parameters, tuple(tuple(b.shape for b in row) for row in self.rows)

    @property
    def structure(self) -> tuple:
        """Equal for boxes of the same classes, of whatever sizes."""
        return self.kind, tuple(tuple(b.structure for b in row) for row in self.rows)


def boxes(model: nn.Module) -> list[list[Box]]:
    """The rows of a model on the meta device."""
    rows = _rows(model, *_run(model))
    _name_only(rows, set())
    return rows


def _name_only(rows: list[list[Box]], seen: set[tuple]) -> None:
    """What was drawn before, of whatever sizes."""
    for box in (box for row in rows for box in row):
        if box.rows and box.kind not in LISTS and box.structure in seen:
            box.rows, box.detail = [], "as above, of its own sizes"
        elif box.rows:
            seen.add(box.structure)
            _name_only(box.rows, seen)


def _run(model: Any) -> tuple[dict[nn.Module, int], dict[nn.Module, int]]:
    """Module -> when it was first called, and the tensor that it read; without the modules that were not called."""
    order: dict[nn.Module, int] = {}
    read: dict[nn.Module, int] = {}
    alive: list[Tensor] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        tensors = [one for one in inputs if isinstance(one, Tensor)]
        alive.extend(tensors)  # so that no other tensor takes the number
        order.setdefault(module, len(order))
        read.setdefault(module, id(tensors[0]) if tensors else -len(order))

    hooks = [module.register_forward_pre_hook(enter) for module in model.modules()]
    try:
        with torch.no_grad():
            answer(model.eval(), sample(model, 1, 64))
    except NotImplementedError:
        pass  # values decide how it goes on: the rest is in the order in which it was built
    finally:
        for hook in hooks:
            hook.remove()
    return order, read


def _rows(module: nn.Module, order: dict[nn.Module, int], read: dict[nn.Module, int]) -> list[list[Box]]:
    children = [(name, child) for name, child in module.named_children() if type(child).__name__ not in SILENT]
    place, places = -1, {}
    for _, child in children:  # what was not called stays behind what stands before it
        place = places[child] = min((order[m] for m in child.modules() if m in order), default=place)
    children.sort(key=lambda pair: places[pair[1]])
    rows: list[list[Box]] = []
    last: int | None = None
    for name, child in children:
        box, source = _box(name, child, order, read), read.get(child)
        if rows and len(rows[-1]) == 1 and type(module).__name__ in LISTS and rows[-1][0].shape == box.shape:
            rows[-1][0].times += 1
        elif rows and source is not None and source == last and len(rows[-1]) < SIDE_BY_SIDE:
            rows[-1].append(box)
        else:
            rows.append([box])
        last = source
    return rows


def _box(name: str, module: nn.Module, order: dict[nn.Module, int], read: dict[nn.Module, int]) -> Box:
    detail = _sizes(module)
    own = ", ".join(f"{key} {'×'.join(map(str, p.shape))}" for key, p in module.named_parameters(recurse=False))
    return Box(name, type(module).__name__, detail, "" if detail else own, _rows(module, order, read))


def _sizes(module: Any) -> str:
    """What a plain layer turns into what; empty for others."""
    for before, after in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if isinstance(getattr(module, after, None), int) and isinstance(getattr(module, before, None), int):
            kernel = getattr(module, "kernel_size", None)
            taps = f", {'×'.join(map(str, kernel))}" if isinstance(kernel, tuple) else ""
            groups = ", depthwise" if getattr(module, "groups", 1) == getattr(module, before) > 1 else ""
            return f"{getattr(module, before)} → {getattr(module, after)}{taps}{groups}"
    if isinstance(module, nn.Embedding):
        return f"{module.num_embeddings} × {module.embedding_dim}"
    return ""


def svg(rows: list[list[Box]], title: str) -> str:
    """The drawing, in the colours of the page."""
    parts: list[str] = []
    height = _draw_rows(rows, 1.0, 1.0, WIDTH - 2, parts.append)
    return (
        f'<svg class="drawing" role="img" aria-label="{html.escape(title)}" width="{WIDTH:.0f}" '
        f'height="{height + 2:.0f}" viewBox="0 0 {WIDTH:.0f} {height + 2:.0f}">{"".join(parts)}</svg>'
    )


def _draw_rows(rows: list[list[Box]], x: float, y: float, width: float, write: Callable[[str], None]) -> float:
    """Draw below y; returns the height."""
    top = y
    for index, row in enumerate(rows):
        if index:
            middle = x + width / 2
            write(f'<path class="flow" d="M{middle:.1f} {y:.1f}v{GAP - 2:.1f}m-2.5-3l2.5 3 2.5-3"/>')
            y += GAP
        each = (width - PAD / 2 * (len(row) - 1)) / len(row)
        heights = [_height(box, each) for box in row]
        for place, box in enumerate(row):
            _draw(box, x + place * (each + PAD / 2), y, each, max(heights), write)
        y += max(heights)
    return y - top


def _height(box: Box, width: float) -> float:
    lines = len(list(_lines(box, width)))
    inside = sum(max(_height(b, _each(row, width)) for b in row) for row in box.rows) + GAP * max(0, len(box.rows) - 1)
    return LINE + (lines - 1) * (LINE - 9) + (inside + PAD if box.rows else 0)


def _each(row: list[Box], width: float) -> float:
    return (width - 2 * PAD - PAD / 2 * (len(row) - 1)) / len(row)


def _lines(box: Box, width: float) -> Iterator[tuple[str, str]]:
    """(what is strong, what is not) of each line of a box's head."""
    times = f" × {box.times}" if box.times > 1 else ""
    rest = " ".join(part for part in (box.kind, box.detail) if part)
    if len(box.name + times) * BOLD + len(rest) * LETTER < width - 20:
        yield box.name + times, rest
    else:
        yield box.name + times, ""
        yield from (
            ("", part) for part in ([rest] if len(rest) * LETTER < width - 8 else [box.kind, box.detail]) if part
        )
    if box.parameters:
        yield "", box.parameters


def _draw(box: Box, x: float, y: float, width: float, height: float, write: Callable[[str], None]) -> None:
    kind = "group" if box.rows else "leaf"
    write(f'<g class="{kind}"><title>{html.escape(" ".join((box.name, box.kind, box.detail, box.parameters)))}</title>')
    write(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4"/>')
    line = y + 16
    for strong, rest in _lines(box, width):
        strong = _cut(strong, width)
        write(f'<text x="{x + 7:.1f}" y="{line:.1f}"><tspan class="name">{html.escape(strong)}</tspan>')
        shown = _cut(rest, width - len(strong) * BOLD)
        gap = ' dx="6"' if strong else ""
        write(f"<tspan{gap}>{html.escape(shown)}</tspan></text>")
        line += LINE - 9
    write("</g>")
    if box.rows:
        _draw_rows(box.rows, x + PAD, line - 16 + PAD, width - 2 * PAD, write)


def _cut(text: str, width: float) -> str:
    room = max(1, int((width - 12) / LETTER))
    return text if len(text) <= room else text[: room - 1] + "…"
