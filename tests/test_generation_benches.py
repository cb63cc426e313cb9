"""`zoo bench scales` and `koala`: what they count, their verdicts, and a run of each."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

import zoo
from cases.benches import published
from zoo.benchmarks import koala, scales
from zoo.benchmarks.tables import Verdict, show_verdicts
from zoo.generative import ScaleKV
from zoo.generative.koala import SITES


def test_a_row_an_expectation():
    title, columns, rows = show_verdicts([Verdict("less", "3 of 4", True), Verdict("none", "3", False)])
    assert title == "What was expected" and columns == ["expected", "found", ""]
    assert rows == [["less", "3 of 4", "met"], ["none", "3", "missed"]]


def test_bits_are_those_of_the_parallel_form():
    torch.manual_seed(0)
    model: Any = zoo.create_model("next_scale_nano", dim=32, depth=2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, kinds = torch.randint(16, (3, 2, 21)), torch.tensor([1, 2, 3])
    found, peak = scales.bits(model, tokens, kinds)
    assert found == pytest.approx(model(tokens, labels=tokens, classes=kinds).item() / math.log(2), rel=1e-5)
    assert peak == 2 * 4 * 2 * 32 * 21
    less, peak = scales.bits(model, tokens, kinds, ScaleKV(((1, 2),) * 2, window=1))
    assert less != pytest.approx(found, rel=1e-6) and peak == 2 * 4 * 2 * 32 * (2 + 16)


def test_figures_from_fewer_keys(monkeypatch, tmp_path):
    record, verdicts, size = published(monkeypatch, tmp_path, scales, "--shares", "1.0", "0.5", "--images", "4")
    plain, whole, calibrated, equal, ours = record["records"]
    for same in (whole, calibrated):  # of all keys, the same images
        assert (same["psnr"], same["equal"]) == (scales.SAME, 1.0) and same["bits"] == pytest.approx(plain["bits"])
        assert same["bytes"] == plain["bytes"]
    assert equal["bytes"] == plain["bytes"] // 2 >= ours["bytes"] > 0 and ours["psnr"] < scales.SAME
    assert len(verdicts) == 4 and verdicts["100% of the tokens: as good (GenEval 0.790 of 0.792): at most 1% more bits"]
    assert size == (4 * 49 - 1, 5 * 49 - 1)


@pytest.mark.parametrize(("psnr", "bits", "found"), [(22.5, 1.005, ["met", "met"]), (19.0, 1.02, ["missed"] * 2)])
def test_verdicts_on_fewer_keys(psnr, bits, found):
    records = [
        {"way": way, "share": share, "psnr": value, "bits": score, "bytes": 9}
        for way, share, value, score in (
            ("all", 1.0, 100.0, 1.0), (scales.WAYS[0], 0.5, 20.0, 1.0), (scales.WAYS[1], 0.5, psnr, bits)
        )
    ]  # fmt: skip
    assert [row[2] for row in show_verdicts(scales.verdicts(records))[2]] == found


def test_a_student_of_a_unet(monkeypatch, tmp_path):
    monkeypatch.setattr(koala, "TESTED", 6)
    monkeypatch.setattr(koala, "draw", partial(koala.draw, steps=1))
    ways = ["task alone", "outputs, self attention", "outputs, last"]
    record, verdicts, size = published(monkeypatch, tmp_path, koala, "--steps", "2", "--seeds", "1", "--ways", *ways)
    teacher, student = record["costs"]["teacher"], record["costs"]["student"]
    assert all(0 < student[key] < teacher[key] for key in ("parameters", "flops"))
    assert record["records"]["teacher"]["distances"] == [0.0] and list(record["records"]) == ["teacher", *ways]
    assert all(record["records"][way]["distances"][0] > 0 for way in ways) and len(verdicts) == 4
    assert size == (10 * 49 - 1, 4 * 49 - 1)
    assert set(koala.WAYS) >= {f"outputs, {site.replace('_', ' ')}" for site in SITES}


@pytest.mark.parametrize(("error", "found"), [(0.4, "met"), (0.7, "missed")])
def test_verdicts_on_students(error, found):
    costs = {name: {"parameters": n, "milliseconds": n} for name, n in (("teacher", 10.0), ("student", 4.0))}
    runs = {"outputs, self attention": error, "outputs, last": 0.6, "task alone": 0.5}
    rows = koala.verdicts(costs, {way: {"errors": [value]} for way, value in runs.items()})
    assert [one.met for one in rows] == [True, True, found == "met", found == "met"]
