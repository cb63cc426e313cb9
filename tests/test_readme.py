"""The figures in the README are those of the results beside it."""

from __future__ import annotations

import json

import pytest

from zoo.benchmarks import readme


def test_the_table_of_families_is_that_of_the_last_run(root, tmp_path):
    results = json.loads((root / "benchmarks" / "results" / "families.json").read_text())
    text = (root / "README.md").read_text()
    assert readme.section(results) in text, "refresh it: python -m zoo.benchmarks.readme"
    copy, other = tmp_path / "README.md", tmp_path / "families.json"
    copy.write_text(text)
    results["comparison"][0]["runs"] = {"transformers": [3.0], "zoo": [2.0]}
    other.write_text(json.dumps(results))
    readme.refresh(copy, other)
    assert "| 1.50 |" in copy.read_text() and copy.read_text().splitlines()[:20] == text.splitlines()[:20]
    copy.write_text("")
    with pytest.raises(ValueError, match="has no section between"):
        readme.refresh(copy, other)
