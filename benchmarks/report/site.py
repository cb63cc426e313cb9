"""Everything put together into one file that needs nothing else."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import zoo
from zoo.benchmarks.common import RESULTS, write_whole
from zoo.benchmarks.report import figures, formula, models, pictures
from zoo.benchmarks.report.documents import documents, family_rows
from zoo.benchmarks.report.families import Family, families
from zoo.benchmarks.report.models import BETTER_HIGH, Row
from zoo.benchmarks.report.results import Results

CLAIM = ("name", "families", "paper", "says", "source", "verdict", "found", "value", "bound_text")
HERE = Path(__file__).resolve().parent


class Cell(NamedTuple):
    """A figure of the table: how it is written, what it is sorted by, and what else there is to say."""

    text: str
    value: float | None
    tip: str = ""


class Column(NamedTuple):
    """A column of figures, and what they are."""

    title: str
    meaning: str


COLUMNS = (
    Column("parameters", "numbers in the weights, tied ones once"),
    Column("active", "parameters that one token uses: experts it does not visit are left out"),
    Column("FLOPs / item", "of a forward pass, for each token, vector or image that is read"),
    Column("state", "bytes that decoding remembers, float32, one row; after how many tokens says the figure"),
    Column("latency", "of a forward pass, one row"),
    Column("items / s", "tokens, vectors or images a second, one row"),
    Column("token", "time of a decoded token, one row"),
    Column("memory", "most bytes at the same time in a forward pass, beside weights and inputs"),
    Column("score", "of the weights that come with the package, on data that comes with it or is generated"),
)


def cells(row: Row) -> list[Cell]:
    """In the order of COLUMNS."""
    why, tokens = row.uncounted, f"after {row.state_tokens:,} tokens" if row.state_tokens else "no state"
    score = row.score
    return [
        Cell(figures.count(row.parameters), row.parameters, f"{row.parameters:,}"),
        Cell(figures.count(row.active), row.active, why or f"{row.active:,}"),
        Cell(figures.scaled(row.flops), row.flops, why or f"{row.flops:,.0f} for each {row.unit}"),
        Cell(figures.size(row.state), row.state, tokens if row.flops else why),
        Cell(figures.seconds(row.latency), row.latency, row.measured),
        Cell(figures.scaled(row.throughput), row.throughput, f"{row.unit}s; {row.measured}" if row.measured else ""),
        Cell(figures.seconds(row.step), row.step, row.measured),
        Cell(figures.size(row.memory), row.memory, row.measured),
        Cell(str(score), -score.value if score.metric in BETTER_HIGH else score.value, score.data)
        if score
        else Cell("", None),
    ]


class Site:
    """What the page shows.

    Args:
        results: the result files.
        root: of the repository, for README and docs/; what is not there is left out.
        pattern: of the models' names.
    """

    def __init__(self, results: Results, root: Path, pattern: str = "*"):
        self.results, self.root = results, root
        self.said = results.records("claims", "claims", *CLAIM)
        self.rows = models.rows(results, pattern)
        self.documents = documents(root)

    @cached_property
    def families(self) -> list[Family]:
        return families(self.rows, family_rows(self.root / "README.md"), self.results, self.said)

    @cached_property
    def claims(self) -> list[dict[str, Any]]:
        known = {family.key for family in self.families}
        return [claim for claim in self.said if known & set(claim["families"])]

    def page(self) -> str:
        """The HTML."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup

        environment = Environment(
            loader=FileSystemLoader(HERE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "drawn": lambda latex: Markup(formula.drawn(latex)), "count": figures.count, "markdown": _inline,
        }  # fmt: skip
        kinds = {row.name: row for row in self.rows}
        return environment.get_template("page.html").render(
            version=zoo.__version__, columns=COLUMNS, cells=cells, rows=self.rows, families=self.families,
            tasks=sorted({row.entry.task for row in self.rows}), documents=self.documents, claims=self.claims,
            verdicts=Counter(claim["verdict"] for claim in self.claims), results=self.results,
            pareto=pictures.pareto(self.rows), growth=pictures.growth(self.results, kinds),
            own_growth=pictures.own_growth, own=Markup,
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        )  # fmt: skip


def _inline(text: str) -> Any:
    """A line of Markdown as HTML."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("commonmark").renderInline(text))


def build(output: Path, results: Path | None = None, pattern: str = "*") -> Path:
    """Write ``output/index.html``.

    Args:
        results: folder of result files; that of the repository where None.
        pattern: of the models that are shown.

    Returns:
        The page.

    Raises:
        FileNotFoundError: without a folder of result files.
        ValueError: for a result file of another schema, or a pattern that no model fits.
    """
    folder = RESULTS if results is None else results
    site = Site(Results(folder), RESULTS.parent.parent, pattern)
    text = site.page()
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "index.html", text)
    return output / "index.html"
