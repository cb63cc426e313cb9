"""A page a family: its equations, a drawing made from the model, how to use it, and what it was checked against."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from rich.console import Console
from rich.progress import track

import zoo
from zoo.benchmarks.report import drawing, formula
from zoo.benchmarks.report.documents import FamilyRow
from zoo.benchmarks.report.models import Row
from zoo.benchmarks.report.results import Results
from zoo.registry import Paper


@dataclass(frozen=True)
class Family:
    """What the page says of a family.

    Attributes:
        described: (class, what it is) of its modules.
        drawn: the model that was drawn.
        recipes: that train a model of it.
        checked: what it was compared with, from README's table.
        claims: records of ``zoo claims`` about it.
        growth: FLOPs and bytes of state of its nano over length.
        pictures: what its miniatures make: the address of an image within the page, what is on it, and the command.
    """

    key: str
    title: str
    rows: list[Row]
    papers: list[Paper]
    equations: list[tuple[str, list[str]]]
    described: list[tuple[str, str]]
    drawing: str
    drawn: str
    recipes: list[str]
    checked: str
    claims: list[Mapping[str, Any]]
    growth: Mapping[str, Any] | None
    pictures: list[tuple[str, str, str]]

    @property
    def smallest(self) -> Row:
        return min(self.rows, key=lambda row: row.parameters)

    @property
    def tags(self) -> list[tuple[str, str]]:
        """(model, tag of weights) that can be loaded."""
        return [(row.name, tag) for row in self.rows for tag in row.entry.tags]

    @property
    def snippet(self) -> str:
        """How one is created, trained and loaded."""
        name = self.drawn
        lines = ["import zoo", "", f'model = zoo.create_model("{name}")']
        if self.tags:
            named, tag = self.tags[0]
            note = "comes with the package" if tag == "bundled" else "downloaded once"
            lines.append(f'model = zoo.create_model("{named}", pretrained=True)  # {tag}, {note}')
        lines += ['zoo.save_model(model, "my_model")', 'model = zoo.create_model("local-dir:my_model")']
        return "\n".join(lines)


def families(
    rows: Iterable[Row], readme: Mapping[str, FamilyRow], results: Results, claims: list[dict[str, Any]]
) -> list[Family]:
    """By their titles."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row.entry.family, []).append(row)
    growth = {r["name"]: r for r in results.records("costs", "over_length", "name", "lengths", "flops", "state")}
    drawn = _drawn(results)
    pages = track(by.items(), "drawing", total=len(by), console=Console(stderr=True), transient=True)
    found = [_family(key, members, readme.get(key), claims, growth, drawn.get(key, [])) for key, members in pages]
    return sorted(found, key=lambda family: family.title.lower())


def _family(
    key: str, rows: list[Row], row: FamilyRow | None, claims: list[dict[str, Any]],
    growth: Mapping[str, dict[str, Any]], pictures: list[tuple[str, str, str]],
) -> Family:  # fmt: skip
    drawn = next((r.name for r in rows if r.name.endswith("_nano")), rows[0].name)
    model = zoo.create_model(drawn, device="meta")
    title = row.title if row else key.replace("_", " ")
    return Family(
        key, title, rows, list({r.entry.paper.arxiv: r.entry.paper for r in rows}.values()),
        formula.equations(model), formula.described(model),
        drawing.svg(drawing.boxes(model), f"Modules of {drawn}"), drawn,
        sorted(recipe for r in rows for recipe in recipes().get(r.name, ())), row.checked if row else "",
        [claim for claim in claims if key in claim["families"]], growth.get(drawn), pictures,
    )  # fmt: skip


def _drawn(results: Results) -> dict[str, list[tuple[str, str, str]]]:
    """Family -> its pictures, of ``zoo bench gallery``."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for r in results.records("gallery", "pictures", "name", "family", "shows", "command"):
        if (path := results.folder / "gallery" / f"{r['name']}.png").is_file():
            address = f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
            found.setdefault(r["family"], []).append((address, r["shows"], r["command"]))
    return found


@cache
def recipes() -> dict[str, list[str]]:
    """Model -> recipes that train it."""
    found: dict[str, list[str]] = {}
    for path in files("zoo.train").joinpath("recipes").iterdir():
        if (name := re.search(r"^ +model: (\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE)) is not None:
            found.setdefault(name[1], []).append(path.name.removesuffix(".yaml"))
    return found
