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
    assert not (tmp_path / "overview.svg").exists()  # without counts
    copy.write_text("")
    with pytest.raises(ValueError, match="has no section between"):
        readme.refresh(copy, other)


def test_the_picture_is_of_the_models_that_were_counted(root, tmp_path):
    counted = json.loads((root / "benchmarks" / "results" / "costs.json").read_text())
    counted["records"] = [r for r in counted["records"] if r["name"] in ("mamba2_nano", "transformer_nano", "vit_nano")]
    counted["over_length"] = [r for r in counted["over_length"] if r["name"] == "mamba2_nano"]
    (tmp_path / "costs.json").write_text(json.dumps(counted))
    picture = readme.picture(tmp_path)
    plots = picture.split("</svg>")
    assert plots[0].count("<circle") == 2 and plots[1].count('class="curve constant"') == 1
    assert "href" not in picture and "data-tip" not in picture
    assert "](benchmarks/results/overview.svg)" in (root / "README.md").read_text().split("##")[0]
    assert (root / "benchmarks" / "results" / "overview.svg").read_text().startswith("<svg xmlns=")
