"""`zoo bench diffusion`: every form can be made, verdicts, and that it measures what a model draws."""

from __future__ import annotations

import math
from typing import Any

import pytest

from zoo.benchmarks import diffusion
from zoo.quantize.method import method_of


def record(form: str, **figures: Any) -> dict[str, Any]:
    found = {"velocity": 0.1, "images": 0.1, "density": 0.2, "loss": 0.0, "bits_a_weight": 4.0, "parts": [0.1] * 3}
    return {"model": "unet_nano", "form": form, "bytes": 1, **found, **figures}


def test_every_form_and_expectation_is_one_that_can_be_made():
    for form, (method, options) in diffusion.FORMS.items():
        if method != "reorder":
            method_of(method, options)
        assert any(diffusion.forms_of(name, [form]) == [diffusion.PLAIN, form] for name in diffusion.MODELS)
    named = {one.form for one in diffusion.EXPECTED} | {one.beside for one in diffusion.EXPECTED if one.beside}
    assert named <= set(diffusion.FORMS) and set(diffusion.DRAWN) <= {diffusion.PLAIN, *diffusion.FORMS}
    assert "W8A4, Q-Diffusion, not split" not in diffusion.forms_of("dit_nano", ["*"])


@pytest.mark.parametrize(("value", "verdict"), [(0.009, "met"), (0.011, "missed")])
def test_verdicts(value, verdict):
    columns, rows = diffusion.show_expected([record("W4, to nearest"), record("W4, Q-Diffusion", images=value)])
    assert columns == ["expected", "unet_nano"]
    shown = {row[0].partition(":")[0]: row[1] for row in rows}
    assert shown["W4, Q-Diffusion"] == "" or verdict in rows[0][1]
    assert rows[0][1] == f"{value / 0.1:.4g} {verdict}" and rows[1][1] == ""
    assert math.isnan(diffusion.EXPECTED[0].value({}))


def test_it_measures_what_a_model_draws(monkeypatch, tmp_path):
    for name, value in {"COUNT": 2, "STEPS": 2, "IMAGES": 11, "DRAWING": 3, "TESTED": 4}.items():
        monkeypatch.setattr(diffusion, name, value)
    monkeypatch.setattr(diffusion, "RESULTS", tmp_path)
    monkeypatch.setattr(
        diffusion, "publish", lambda name, options, result, *tables, **more: shown.append((result, tables))
    )
    shown: list[Any] = []
    call = ["--models", "dit_nano", "--forms", "W4, to nearest", "blocks, 80 %"]
    diffusion.main(call)
    (result, tables), made = shown[0], (tmp_path / "diffusion.json").read_text()
    plain, nearest, blocks = result["records"]
    assert plain["velocity"] == plain["images"] == plain["loss"] == 0.0 and plain["density"] == 1.0
    assert 0.001 < nearest["velocity"] < 0.1 and 0 < nearest["images"] < 0.1 and nearest["bits_a_weight"] < 8
    assert 0.25 < blocks["density"] < 1 and blocks["velocity"] > 0 and len(blocks["parts"]) == 3
    assert [len(record["drawn"]) for record in result["records"]] == [2 * 10 * 64] * 3 and len(tables[1][2]) == 3
    diffusion.plot(result["records"], tmp_path / "made.png")
    assert (tmp_path / "made.png").stat().st_size > 5000
    monkeypatch.setattr(diffusion, "Subject", None)  # what is there is not measured again
    diffusion.main(call)
    assert shown[1][0]["records"] == result["records"] and (tmp_path / "diffusion.json").read_text() == made
