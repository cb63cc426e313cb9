"""`zoo bench scales` and `koala`: what they count, their verdicts, and a run of each."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

import zoo
from cases.benches import published
from zoo.benchmarks import collaborative, koala, scales
from zoo.benchmarks.tables import Verdict, show_verdicts
from zoo.generative import ScaleKV
from zoo.generative.koala import SITES


def test_a_row_an_expectation():
    title, columns, rows = show_verdicts([Verdict("less", "3 of 4", True), Verdict("none", "3", False)])
    assert title == "What was expected" and columns == ["expected", "found", ""]
    assert rows == [["less", "3 of 4", "met"], ["none", "3", "missed"]]


def opened(depth: int = 2) -> Any:
    torch.manual_seed(depth)
    model: Any = zoo.create_model("next_scale_nano", dim=32, depth=depth).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_bits_are_those_of_the_parallel_form():
    model = opened()
    tokens, kinds = torch.randint(16, (3, 2, 21)), torch.tensor([1, 2, 3])
    found, peak = scales.bits(model, tokens, kinds)
    assert found == pytest.approx(model(tokens, labels=tokens, classes=kinds).item() / math.log(2), rel=1e-5)
    assert peak == 2 * 4 * 2 * 32 * 21
    less, peak = scales.bits(model, tokens, kinds, ScaleKV(((1, 2),) * 2, window=1))
    assert less != pytest.approx(found, rel=1e-6) and peak == 2 * 4 * 2 * 32 * (2 + 16)


def test_bits_of_two_models_are_those_of_what_each_says():
    models, tokens, kinds = {"large": opened(3), "small": opened(1)}, torch.randint(16, (3, 2, 21)), torch.arange(3)
    for coarse, fine in (("large", "small"), ("small", "large")):
        logits = [models[role](tokens, classes=kinds) for role in (coarse, fine)]
        chosen = torch.cat([logits[0][:, :, :5], logits[1][:, :, 5:]], 2).log_softmax(-1)
        wanted = -chosen.gather(-1, tokens[..., None]).sum().item() / 3 / math.log(2)
        found = collaborative.bits_of(collaborative.Way(coarse, fine, 2), models, tokens, kinds)
        assert found == pytest.approx(wanted, rel=1e-5)


def test_figures_from_fewer_keys(monkeypatch, tmp_path):
    monkeypatch.setattr(collaborative, "BATCH", 2)
    arguments = "--shares", "1.0", "0.5", "--images", "4", "--drafted", "4", "--budget", "0"
    record, verdicts, size = published(monkeypatch, tmp_path, scales, *arguments)
    plain, whole, calibrated, equal, ours = record["records"]
    for same in (whole, calibrated):  # of all keys, the same images
        assert (same["psnr"], same["equal"]) == (scales.SAME, 1.0) and same["bits"] == pytest.approx(plain["bits"])
        assert same["bytes"] == plain["bytes"]
    assert equal["bytes"] == plain["bytes"] // 2 >= ours["bytes"] > 0 and ours["psnr"] < scales.SAME
    assert len(verdicts) == 8 and verdicts["100% of the tokens: as good (GenEval 0.790 of 0.792): at most 1% more bits"]
    large, small, together, swapped = record["collaboration"]["records"]
    assert large["bits"] == pytest.approx(plain["bits"]) and large["psnr"] == collaborative.SAME
    assert large["divergence"] == 0 < small["divergence"] and large["key bytes"] == plain["peak"]
    assert small["flops"] < together["flops"] < large["flops"] < swapped["flops"]
    assert together["equal"] > swapped["equal"] and together["key bytes"] == 4 * 2 * 3 * 32 * 130
    assert all(one["milliseconds"] > 0 for one in (large, small, together, swapped))
    assert size == (4 * 49 - 1, 7 * 49 - 1)


@pytest.mark.parametrize(("psnr", "bits", "found"), [(22.5, 1.005, ["met", "met"]), (19.0, 1.02, ["missed"] * 2)])
def test_verdicts_on_fewer_keys(psnr, bits, found):
    records = [
        {"way": way, "share": share, "psnr": value, "bits": score, "bytes": 9}
        for way, share, value, score in (
            ("all", 1.0, 100.0, 1.0), (scales.WAYS[0], 0.5, 20.0, 1.0), (scales.WAYS[1], 0.5, psnr, bits)
        )
    ]  # fmt: skip
    assert [row[2] for row in show_verdicts(scales.verdicts(records))[2]] == found


@pytest.mark.parametrize(("worse", "times", "found"), [(0.009, 3.0, "met"), (0.2, 1.1, "missed")])
def test_verdicts_on_two_models(worse, times, found):
    good = found == "met"
    both = ("large", "small")
    records = [
        {"coarse": coarse, "fine": fine, "drafted": drafted, "share": 0.5, "bits": 2 * (1 + bits), "divergence": far,
         "flops": 9 / speed, "milliseconds": 6 / speed, "psnr": psnr, "key bytes": 4.0 if good else 6.0}
        for coarse, fine, drafted, bits, speed, far, psnr in (
            ("large", "large", 6, 0.0, 1.0, 0.0, 100.0), (*both, 5, worse, times, 1.0, 9.0),
            (*both, 4, worse, times, 2.0 if good else 0.5, 20.0), (*both, 3, worse, times, 3.0, 9.0),
            ("small", "large", 4, worse, times, 3.0, 15.0 if good else 25.0),
        )
    ]  # fmt: skip
    records[0]["key bytes"] = 8.0
    maps = {"large": [1.0, 2.0, 2.0], "small": [1.3, 2.2, 2.1 if good else 2.3]}
    rows = collaborative.verdicts({"records": records, "maps": maps})
    assert [one.met for one in rows] == [good] * 8, rows


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
