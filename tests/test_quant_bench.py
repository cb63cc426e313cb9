"""The benchmark of quantised models: what it loses, its verdicts, and that every form can be made."""

from __future__ import annotations

from typing import Any

import pytest

import zoo
from zoo.benchmarks import quant
from zoo.benchmarks.quant_forms import OF_TEXT
from zoo.quantize import Calibration
from zoo.quantize.method import method_of


def records(losses: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"model": "mamba2_nano", "form": form, "bytes": 1e5, "bits_a_weight": 4.0, "score": 1.5 + lost, "seconds": 1.0}
        for form, lost in {quant.FLOAT: 0.0, **losses}.items()
    ]


def test_every_form_is_one_that_can_be_made():
    for method, options in quant.METHODS.values():
        method_of(method, options)
    assert {claim.form for claim in quant.CLAIMS} <= set(quant.METHODS)
    assert set(OF_TEXT) <= set(quant.METHODS)
    for form in quant.METHODS:  # alone, with what it is compared with
        lost = dict.fromkeys(quant.forms_of("moe_nano", [form]), 0.0)
        assert form in lost and quant.show_claims(records(lost))[1]


@pytest.mark.parametrize(("lost", "verdict"), [(0.029, "met"), (0.031, "missed")])
def test_the_projects_claim(lost, verdict):
    columns, rows = quant.show_claims(records({"4 bits": lost}))
    assert columns == ["expected", "mamba2_nano"]
    assert rows[0][1] == f"{lost:+.3f} {verdict}" and not any(row[1] for row in rows[1:])


def test_claims_that_compare_forms():
    losses = dict.fromkeys(quant.METHODS, 0.1) | {"3 bits, BAQ": 0.051, "2 bits, OmniQuant": 0.09}
    verdicts = {row[0].partition(":")[0]: row[1].split()[1] for row in quant.show_claims(records(losses))[1]}
    assert verdicts["3 bits, BAQ"] == "missed" and verdicts["2 bits, OmniQuant"] == "met"


def test_scores_of_text_and_images_and_the_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(quant, "calibration", lambda name: Calibration([quant.digits("train")[0][0][:2]]))
    found = quant.qualities("vovnet_nano", ["8 bits"], lambda what: None)
    assert [r["form"] for r in found] == [quant.FLOAT, "8 bits"] and all(0 <= r["score"] < 5 for r in found)
    assert found[1]["bytes"] < 0.4 * found[0]["bytes"] and found[0]["bits_a_weight"] >= 32
    model = zoo.create_model("transformer_nano", pretrained=True).eval()
    assert 1.5 < quant.scored(model, quant.text("test", windows=8)) < 2.0
    quant.plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert len(quant.show_quality(found)[1]) == 2


def test_times_are_of_steps(monkeypatch):
    monkeypatch.setattr(quant, "PROMPT", 8)
    monkeypatch.setattr(quant, "STEPS", 2)
    monkeypatch.setattr(quant, "SIZES", {quant.FLOAT: None, "4 bits": {"bits": 4}})
    found = quant.times("transformer_nano", 0.01, lambda what: None, more=False)
    assert [r["form"] for r in found] == list(quant.SIZES)
    assert len(quant.show_times(found)[1]) == len(found) and quant.show_times(found)[1][0][-2] == "1.00"


def test_times_beside_llama_cpp_are_told():
    """Of a form that it has too, how much longer its step takes; peaks where they were measured."""
    found = [
        {
            "model": "a",
            "form": form,
            "bytes": 1e6,
            "bits_a_weight": 4.0,
            "prefill": [0.1],
            "steps": [step],
            "peak": size,
        }
        for form, step, size in ((quant.FLOAT, 0.02, 3e6), ("4 bits", 0.01, None), ("4 bits, llama.cpp", 0.015, None))
    ]
    columns, rows = quant.show_times(found)
    assert columns[-1] == "llama.cpp / step" and [row[-1] for row in rows] == ["", "1.50", ""]
    assert [row[3] for row in rows] == ["3", "", ""] and [row[-2] for row in rows] == ["1.00", "2.00", "1.33"]
