"""Every snippet of README and of the pages in docs/ runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cases.snippets import try_page

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONG = {"training", "deploy", "models"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.pytorch.cli")  # jsonargparse's, of how that calls it
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in PAGES]
)
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_snippets(page, own_folder):
    assert try_page(page, ROOT / "Makefile") > 0


def test_there_are_at_most_eight_pages():
    assert 1 <= len(PAGES) - 1 <= 8
