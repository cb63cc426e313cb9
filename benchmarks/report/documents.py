"""Markdown of the repository as HTML of one page: docs/*.md, the tables beside the result files, README's families."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.registry import entries


@dataclass(frozen=True)
class Document:
    """A page of the site: where it is on it, its title, its HTML."""

    key: str
    title: str
    body: str


def documents(root: Path) -> list[Document]:
    """Pages of docs/, in the repository alone, and the tables of benchmarks/results, as far as they are there."""
    files = [("docs", path) for path in sorted((root / "docs").glob("*.md"))] if is_ours(root) else []
    files += [("results", path) for path in sorted((root / "benchmarks" / "results").glob("*.md"))]
    places = {path.relative_to(root).as_posix(): f"{kind}-{path.stem}" for kind, path in files}
    places["README.md"] = "models"
    return [_document(path, path.relative_to(root), places) for _, path in files]


def is_ours(root: Path) -> bool:
    """Whether a folder is the repository: of an installed package it is where somebody works."""
    project = root / "pyproject.toml"
    return project.is_file() and 'name = "efficient-zoo"' in project.read_text(encoding="utf-8")


def _document(path: Path, name: Path, places: dict[str, str]) -> Document:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark").enable("table")
    tokens = reader.parse(path.read_text(encoding="utf-8"))
    title = path.stem
    if tokens and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        title = tokens[1].content
        del tokens[:3]
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, max(3, int(token.tag[1]) + 1))}"
        for child in token.children or ():
            if child.type == "link_open":
                _lead(child, name, places)
            elif child.type == "image":
                child.type, child.tag = "text", ""
    body = reader.renderer.render(tokens, reader.options, {})
    body = re.sub(r"<a>(.*?)</a>", r"\1", body, flags=re.DOTALL)
    body = body.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    return Document(places[name.as_posix()], title, body.replace("<pre>", '<pre tabindex="0">'))


def _lead(link: Any, name: Path, places: dict[str, str]) -> None:
    """A link to a file of the repository leads to its place on the page, or nowhere."""
    target = str(link.attrs["href"]).partition("#")[0]
    if re.match(r"[a-z]+:", target):
        link.attrs["rel"] = "noopener"
        return
    parts: list[str] = []
    for step in (PurePosixPath(name.as_posix()).parent / target).parts:
        parts = parts[:-1] if step == ".." else [*parts, step]
    place = places.get("/".join(parts)) if target else places[name.as_posix()]
    link.attrs.clear()
    if place is not None:
        link.attrs["href"] = f"#{place}"


@dataclass(frozen=True)
class FamilyRow:
    """A row of README's table of families, its cells as Markdown."""

    title: str
    checked: str


def family_rows(readme: Path) -> dict[str, FamilyRow]:
    """Family of the registry -> its row in README's table; empty without one."""
    if not readme.exists() or not is_ours(readme.parent):
        return {}
    known, rows = entries(), {}
    table = readme.read_text(encoding="utf-8").partition("## Families")[2].partition("\n## ")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        names = [name for cell in cells[1:2] for written in re.findall(r"`([^`]+)`", cell) for name in spelled(written)]
        for name in names:
            if name in known:
                rows.setdefault(known[name].family, FamilyRow(cells[0], cells[-1].strip(" |")))
    return rows


def spelled(names: str) -> list[str]:
    """``a_{1,2}b`` -> a_1b, a_2b; ``{1..3}`` -> 1, 2, 3."""
    parts = re.split(r"\{([^}]*)\}", names)
    choices = []
    for index, part in enumerate(parts):
        if index % 2 and (span := re.fullmatch(r"(\d+)\.\.(\d+)", part)):
            choices.append([str(n) for n in range(int(span[1]), int(span[2]) + 1)])
        else:
            choices.append(part.split(",") if index % 2 else [part])
    return ["".join(chosen) for chosen in itertools.product(*choices)]
