"""`zoo bench subnetworks` and `zoo bench incremental`: what is counted, the verdicts, and that they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.benchmarks import incremental, subnetworks
from zoo.layers.quant import count_parameters
from zoo.subnetworks import run, subnetwork
from zoo.train.tasks.elastic import Space


def test_parts_of_a_model_are_counted_searched_and_drawn(tmp_path):
    model: Any = zoo.create_model("transformer_nano", dim=16, depth=4, num_heads=2, num_kv_heads=1, mlp_dim=12).eval()
    parts = subnetworks.Parts(model, Space(4, (4, 12), 2), count=1)
    genome = (1, 0, 1, 1, 0, 1, 1, 0)
    part = parts.space.part(genome)
    alone = subnetwork(zoo.create_model("transformer_nano", dim=16, depth=4, num_heads=2, num_kv_heads=1, mlp_dim=12),
                       part.blocks, part.widths)  # fmt: skip
    assert parts.parameters(genome) == count_parameters(alone)
    tokens, labels = parts.splits["val"]
    with torch.no_grad():
        bits = run(model, part, tokens, labels=labels) / torch.tensor(2.0).log()
    assert parts.bits(genome) == pytest.approx(bits.item())

    record = subnetworks.searched(parts, "genetic", 20, 0)
    assert len(record["asked"]) == 20 and record["evaluated"] == round(20 * (1 - record["skipped"]))
    whole = subnetworks.whole_of(parts)
    (title, columns, rows), verdicts = subnetworks.show(whole, [record, record | {"way": "random"}])
    assert (
        len(columns) == len(rows[0])
        and f"{whole['test']:.3f}" in title
        and "than chance, genetic: 1.000 times" in verdicts
    )
    best = subnetworks.smaller(whole, [record])
    assert best in record["front"]
    subnetworks.draw(whole, [record], tmp_path / "fronts.png")
    assert (tmp_path / "fronts.png").stat().st_size > 1000


def test_streams_of_digits_under_a_budget(monkeypatch, capsys):
    monkeypatch.setattr(incremental, "STEPS", 1)
    monkeypatch.setattr(incremental, "WAYS", {"MEMO": 1, "DER": 2, "replay": 0})
    monkeypatch.setattr(incremental, "SIZES", incremental.SIZES | {"dim": 8, "depth": 2, "num_heads": 1})
    incremental.main(["--seeds", "1", "--no-save"])
    assert "MEMO above DER" in capsys.readouterr().out
