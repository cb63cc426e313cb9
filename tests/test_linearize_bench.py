"""The benchmark of linear attention: its variants can be made, and what its table says."""

from __future__ import annotations

import json

from zoo.benchmarks import linearize


def test_every_variant_is_one_that_can_be_made():
    import zoo

    for name, variant in linearize.VARIANTS.items():
        change = {"kind": "linearized", "window": 32, **variant.options}
        assert zoo.create_model(linearize.TEACHER, device="meta", changes=[json.loads(json.dumps(change))]), name


def test_the_state_grows_with_the_teacher_alone(monkeypatch):
    import zoo

    sizes = []
    for length in (64, 128):
        monkeypatch.setattr(linearize, "LENGTH", length)
        linear = zoo.create_model("lizard_nano")
        sizes.append((linearize.state_bytes(zoo.create_model(linearize.TEACHER)), linearize.state_bytes(linear)))
    assert sizes[1][0] == 2 * sizes[0][0] and sizes[1][1] == sizes[0][1]


def test_verdicts():
    bits = {linearize.TEACHER: 1.70, "whole": 1.76, "no gate": 1.80, "no window": 1.75}
    records = [{"variant": name, "bits": value, "state_bytes": 1000} for name, value in bits.items()]
    verdicts = [row[-1] for row in linearize.show(records)[1]]
    assert verdicts == ["", "missed", "met", "missed"]
    records[1]["bits"] = 1.745
    assert linearize.show(records)[1][1][1:] == ["1.745", "+0.045", "1,000", "met"]
    assert linearize.show(records[:1] + records[2:])[1][1][-1] == ""  # nothing to compare with
