"""The benchmark of training with noise: its variants can be made, its scores are of every form, and its verdicts."""

from __future__ import annotations

import json
from typing import Any

import zoo
from zoo.benchmarks import noise
from zoo.benchmarks.exits import text


def records(bits: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"variant": name, "seed": seed, "bits": dict.fromkeys(noise.FORMS, value + 0.1 * seed)}
        for name, value in bits.items()
        for seed in (0, 1)
    ]


def test_every_variant_is_one_that_can_be_made():
    for changes in noise.VARIANTS.values():
        assert zoo.create_model("transformer_nano", device="meta", changes=json.loads(json.dumps(changes)))
    assert {name.partition(", ")[2] for name in noise.VARIANTS} - {""} <= set(noise.FORMS)


def test_scores_are_of_every_form(monkeypatch):
    few = text("test", windows=4)
    monkeypatch.setattr(noise, "text", lambda *_, **__: few)
    found = noise.scores(zoo.create_model("transformer_nano", pretrained=True).eval())
    assert list(found) == list(noise.FORMS)
    assert found["float32"] < found["4 bits"] < found["3 bits"] < found["2 bits"]


def test_verdicts():
    """Of means over the seeds that all have; one alone changes nothing."""
    held = records({noise.PLAIN: 2.0, "noise, 3 bits": 2.015, "noise, 2 bits": 1.9, "rounded, 2 bits": 1.8})
    held.append({"variant": noise.PLAIN, "seed": 2, "bits": dict.fromkeys(noise.FORMS, 9.0)})
    columns, rows = noise.show(held)
    found = {row[0]: row[-2:] for row in rows}
    assert columns[-2:] == ["float32 to plain", "its bits to plain"] and rows[0][1] == "2.050"
    assert found["noise, 3 bits"] == ["+0.015 met", "+0.015 missed"]
    assert found["noise, 2 bits"] == ["-0.100 met", "-0.100 met"]
    assert found[noise.PLAIN] == found["rounded, 2 bits"] == ["", ""]
