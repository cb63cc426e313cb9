"""`zoo report`: what the page says comes from result files and from the models; and it works in a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch import nn

import zoo
from cases.browser import PROGRAM, browser
from zoo.benchmarks.report import drawing, figures, formula, plots
from zoo.benchmarks.report.documents import documents, family_rows, spelled
from zoo.benchmarks.report.site import build
from zoo.cli import main
from zoo.registry import entries

MACHINE = {"processor": "a CPU", "threads": 1, "commit": "abc", "date": "2026-01-01", "packages": {}}
CLAIM = {
    "name": "linear", "families": ["mamba2"], "paper": "2405.21060", "source": "section 1", "says": "It is linear.",
    "verdict": "missed", "found": 1.5, "bound_text": "≤ 1.1", "value": "exponent",
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three models, with results of our own."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "results").mkdir()
    times = {
        "model": "mamba2_nano", "measure": "forward", "batch": 1, "inputs": [1, 256], "items": 256,
        "runs": {"zoo": [0.25, 0.5, 0.25]}, "bytes": {"zoo": 2048},
    }  # fmt: skip
    for name, content in (("models", {"records": [times]}), ("claims", {"claims": [CLAIM]})):
        (folder / "results" / f"{name}.json").write_text(json.dumps({"schema": 1, "machine": MACHINE} | content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        return build(folder, folder / "results", "mamba*_nano")


class Reader(HTMLParser):
    """Ids, links inside the page, addresses that a browser would load, and the cells of the rows of the table."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.inside, self.loaded, self.open = list[str](), set[str](), list[str](), list[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "a" and str(given.get("href")).startswith("#"):
            self.inside.add(str(given["href"])[1:])
        if tag in ("link", "script", "img", "iframe", "use"):
            self.loaded += [
                value for key, value in attrs if key in ("src", "href") and value and not value.startswith("data:")
            ]


def test_the_page_is_whole_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    found = Reader(text)
    assert not found.loaded and "@import" not in text and not re.search(r"url\((?!['\"]?data:)", text)
    assert len(found.ids) == len(set(found.ids)), "an id stands for one thing"
    assert found.inside <= set(found.ids), found.inside - set(found.ids)
    assert {"models", "plots", "families", "family-mamba2", "docs-quickstart", "results-families"} <= set(found.ids)


def test_figures_are_those_of_the_files_and_of_the_registry(page: Path) -> None:
    text = page.read_text()
    row = re.search(r'<tr data-task="language" data-words="mamba2_nano.*?</tr>', text, re.DOTALL)
    assert row is not None
    profile = zoo.profile("mamba2_nano", tokens=1024, device="meta", training=False)
    expected = [
        profile.parameters, profile.active_parameters, profile.phase("forward").flops / 1024,
        profile.state_bytes[-1][1], 0.25, 1024.0, 2048,
    ]  # fmt: skip
    assert [float(v) for v in re.findall(r'data-v="([^"]+)"', row[0])][:-1] == expected
    known = entries()["mamba2_nano"].weights["bundled"].metric
    assert known is not None and re.sub(r"\D", "", row[0].rsplit('data-v="')[-1].split('"')[0]) in re.sub(
        r"\D", "", known
    )
    family = text.partition('id="family-mamba2"')[2].partition("</section>")[0]
    assert "It is linear." in family and "missed" in family and "exponent: 1.5, expected ≤ 1.1" in family
    assert "transformers, prefill and every decode step" in family and "zoo train docs_mamba2_nano" in family


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("models", {"schema": 2}, "models.json is of schema 2"),
        ("models", {"schema": 1}, "models.json has no list 'records'"),
        ("claims", {"schema": 1, "claims": [{"name": "x"}]}, "claims.json: an entry lacks families"),
        ("costs", [], "costs.json is of schema 'no object'"),
    ],
)
def test_a_file_of_another_schema_is_one_error(name, content, says, tmp_path, capsys) -> None:
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert main(["report", "--output", str(tmp_path / "site"), "--results", str(tmp_path), "--models", "vit_nano"]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1 and not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--results", "nowhere"], "nowhere is no folder"), (["--models", "x_*"], "no model fits 'x_*'")],
)
def test_what_is_not_there_is_one_error(arguments, says, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    assert says in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_every_family_has_a_row_in_readme(root: Path) -> None:
    rows = family_rows(root / "README.md")
    assert not {entry.family for entry in entries().values()} - set(rows)
    assert spelled("a{1..3}_{x,y}") == ["a1_x", "a1_y", "a2_x", "a2_y", "a3_x", "a3_y"]


def test_documents_lead_to_places_on_the_page(root: Path) -> None:
    found = {document.key: document for document in documents(root)}
    body = found["docs-measuring"].body
    assert 'href="#results-layers"' in body and 'href="../' not in body and "<img" not in body


def test_a_drawing_shows_what_runs_in_its_order() -> None:
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 4)
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
            self.many = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
            self.config = zoo.model_info  # overwritten below

        def forward(self, x):
            return self.last(self.many(self.left(x) + self.right(x)))

    class Config:
        in_features = 4

    model = Two().to("meta")
    model.config = Config
    rows = drawing.boxes(model)
    assert [[box.name for box in row] for row in rows] == [["left", "right"], ["many"], ["last"]]
    assert [[(box.name, box.times) for box in row] for row in rows[1][0].rows] == [[("0", 3)]]
    assert "0 × 3" in drawing.svg(rows, "two")


def test_equations_are_drawn() -> None:
    found = dict(formula.equations(zoo.create_model("mamba2_nano", device="meta")))
    assert "Mamba2" in found and all("<path" in formula.drawn(line) for line in found["Mamba2"])
    assert formula.drawn(r"\nothing{<}") == r"<code>\nothing{&lt;}</code>"


@pytest.mark.slow
@pytest.mark.parametrize("family", zoo.list_families())
def test_every_family_has_equations_and_a_drawing(family: str) -> None:
    names = zoo.list_models(family=family)
    model = zoo.create_model(next((name for name in names if name.endswith("_nano")), names[0]), device="meta")
    lines = [line for _, found in formula.equations(model) for line in found]
    assert lines and not [line for line in lines if "<path" not in formula.drawn(line)]
    assert drawing.boxes(model)


def test_the_front_is_what_none_beats() -> None:
    points = [plots.Point(x, y, "", "", "") for x, y in [(3, 1), (1, 3), (2, 2), (2, 4), (4, 1)]]
    assert [(p.x, p.y) for p in plots.pareto(points, higher=False)] == [(1, 3), (2, 2), (3, 1)]
    assert [(p.x, p.y) for p in plots.pareto(points, higher=True)] == [(1, 3), (2, 4)]


@pytest.mark.parametrize(
    ("value", "shown"), [(None, ""), (0, "0"), (999.6, "1 k"), (1500, "1.5 k"), (129_135_360, "129 M"), (2e9, "2 G")]
)
def test_how_figures_are_written(value, shown) -> None:
    assert figures.scaled(value) == shown


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="no chromium here: apt-get install chromium")
def test_in_a_browser(page: Path, tmp_path: Path) -> None:
    """Sorts, filters, links, keys, colours, and a telephone's width."""
    with browser(tmp_path) as tab:
        tab.open(page)
        names = "[...document.querySelectorAll('#table tbody tr:not([hidden]) th')].map(e => e.textContent)"
        start = tab.run(names)
        assert len(start) > 2 and tab.run("document.querySelectorAll('.view.on').length") == 1
        sort = "document.querySelectorAll('#table thead button')[2].click()"
        tab.run(sort)
        rising = tab.run(names)
        assert rising == sorted(start, key=lambda name: zoo.model_info(name).num_parameters)
        tab.run(sort)
        assert tab.run(names) == rising[::-1]
        assert tab.run("document.querySelectorAll('#table thead th')[2].getAttribute('aria-sort')") == "descending"
        tab.run("document.querySelectorAll('#table thead button')[6].click()")  # latency: one has it
        assert tab.run(names)[0] == "mamba2_nano"

        tab.run("document.querySelector('#words').focus()")
        tab.type("mamba2 2405")
        assert tab.run(names) == ["mamba2_nano"] and tab.run("document.querySelector('#shown').value").startswith(
            "1 of"
        )

        tab.open(page)
        reached = []
        for _ in range(30):  # by the keyboard alone
            tab.press("Tab")
            reached.append(tab.run("(e => e.id || e.textContent.trim())(document.activeElement)"))
        assert {"Plots", "Families", "theme", "words", "task", "scored", "scroller", "parameters", start[0]} <= set(
            reached
        )
        tab.run("document.querySelector('nav a[href=\"#families\"]').focus()")
        tab.press("Enter", "\r")
        assert (
            tab.run("new Promise(r => setTimeout(() => r(document.querySelector('.view.on').id), 100))") == "families"
        )

        seen = {}
        for dark in (False, True):
            tab.open(page, 390, 844, dark)
            seen[dark] = tab.run("getComputedStyle(document.body).backgroundColor")
            assert tab.run(WIDTHS) == {"views": [], "wide": []}
            if dark:  # what is written can be read
                ratio = tab.run(CONTRAST)
                assert ratio >= 4.5, ratio
        assert seen[False] != seen[True]
        tab.run("document.querySelector('#theme').click()")
        assert tab.run("getComputedStyle(document.body).backgroundColor") == seen[False]

        tab.open(page)
        tab.run("location.hash = '#plots'; new Promise(r => setTimeout(r, 50))")
        tab.run("document.querySelector('.plot [data-tip]').focus()")
        assert "mamba2_nano" in tab.run("document.querySelector('#tip').textContent") + tab.run(
            "document.body.textContent"
        )
        assert tab.errors == []


# views that are not shown when their address is, and those that are wider than the window
WIDTHS = """(async () => {
  const found = {views: [], wide: []};
  for (const view of document.querySelectorAll('.view')) {
    location.hash = '#' + view.id;
    await new Promise((r) => setTimeout(r, 5));
    if (document.querySelector('.view.on') !== view) found.views.push(view.id);
    if (document.documentElement.scrollWidth > innerWidth || innerWidth !== 390) found.wide.push(view.id);
  }
  return found;
})()"""
CONTRAST = """(() => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4, share = [0.2126, 0.7152, 0.0722];
  const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).reduce((sum, v, i) => sum + share[i] * linear(v / 255), 0);
  const ground = light(getComputedStyle(document.body).backgroundColor);
  return Math.min(...["body", ".lead", "a", ".source"].map((s) => document.querySelector(s)).filter(Boolean)
    .map((e) => light(getComputedStyle(e).color))
    .map((l) => (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05)));
})()"""


def test_what_is_not_the_repositorys_is_not_on_the_page(root: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "secret.md").write_text("# Mine")
    (tmp_path / "README.md").write_text((root / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    assert not documents(tmp_path) and not family_rows(tmp_path / "README.md")
