"""The efficiency gap: its identity, the parts of a model that hold all its operations, the benchmark over families."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from typing import Any

import pytest
import torch

import zoo
from zoo.benchmarks import common, runtime
from zoo.benchmarks import gap as bench
from zoo.profile import profile
from zoo.profile.gap import finest, gap, gap_by_layer
from zoo.profile.record import Layer, Peaks, Phase, Profile, Seconds

PEAKS = Peaks("cpu", "float32", flops=100.0, bandwidth=10.0)


def layer(name: str, flops: int, seconds: float = 1.0) -> Layer:
    return Layer(name, "Linear", 1, 1, flops, 10, flops / 50, seconds)


def measured() -> Profile:
    layers = (
        layer("", 100, 5.0), layer("stem", 20), layer("blocks.0", 50, 4.0), layer("blocks.0.mlp", 30), layer("norm", 0),
        layer("blocks.0.norm", 0), layer("blocks.1", 30, 2.0), layer("blocks.1.a", 10), layer("blocks.1.b", 20),
    )  # fmt: skip
    phase = Phase("forward", 1, 100, 90, 30, 16, 4.0, 2.5, Seconds(5.0, 4.0, 6.0), 20)
    return Profile("m", "cpu", "float32", (1, 3), "image", 1, 1, 4, (), (phase,), layers, PEAKS)


def test_latency_is_operations_over_peak_and_efficiency():
    found = gap(measured())
    assert found.ideal == 1.0 and found.efficiency == 0.2 and found.ceiling == 0.4
    assert found.latency == found.flops / (PEAKS.flops * found.efficiency)
    counted = dataclasses.replace(measured(), peaks=None)
    for of in (gap, gap_by_layer):
        with pytest.raises(ValueError, match="counted and not run"):
            of(counted)


def test_parts_hold_all_operations():
    """Attention computes between its layers, so the first block stays whole; the second is its two layers."""
    names = [part.name for part in finest(measured().layers)]
    assert names == ["stem", "blocks.0", "norm", "blocks.1.a", "blocks.1.b"]
    parts = gap_by_layer(measured())
    assert sum(part.flops for part in parts) == 100 and [p.efficiency for p in parts] == [0.2, 0.125, 0.1, 0.2]
    layers = profile("convfirst_nano", device="meta", training=False).layers
    assert sum(part.flops for part in finest(layers)) == layers[0].flops > 0 and len(finest(layers)) > 5


def test_every_vision_family_is_measured():
    def family(name: str) -> str:
        return zoo.registry.lookup(name).family

    images = {
        family(name)
        for task in ("image-classification", "segmentation", "multi-task")
        for name in zoo.list_models("*_nano", task=task)
    }
    assert images <= {family(name) for name in bench.MODELS} and len(set(map(family, bench.MODELS))) == len(
        bench.MODELS
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Any:
    """Where results go; models are measured in this process."""
    for module in (bench, runtime):
        monkeypatch.setattr(module, "in_processes", lambda measure, jobs: ([measure(*a) for a in jobs.values()], {}))
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(import_module("zoo.profile"), "peaks", lambda *_, **__: PEAKS)
    monkeypatch.setattr(bench, "peaks", lambda **_: PEAKS)
    return tmp_path


def test_benchmark_of_the_gap(folder, monkeypatch):
    monkeypatch.setattr(bench, "FUSED", "convfirst_nano")
    monkeypatch.setattr(bench, "TILES", (4,))
    monkeypatch.setattr(bench, "image", lambda: torch.randn(1, 1, 8, 8))
    monkeypatch.setattr(bench, "fresh_peak", lambda call, tile: 7)
    bench.main(["--models", "convfirst_nano", "vit_nano", "--runs", "1", "--budget", "0"])
    record = json.loads((folder / "gap.json").read_text())
    first, second = record["records"]
    assert first["efficiency"] == pytest.approx(first["flops"] / PEAKS.flops / first["latency"], rel=1e-3)
    assert sum(part["flops"] for part in second["layers"]) == second["flops"]
    plain, tiled = record["tiles"]
    assert tiled["bytes"] < plain["bytes"] and tiled["apart"] < 1e-5 and (folder / "gap.png").exists()


def test_benchmark_of_the_runtime(folder, monkeypatch):
    monkeypatch.setattr(runtime, "LENGTHS", (4, 8, 12))
    monkeypatch.setattr(runtime, "HELD_OUT", (6, 16))
    monkeypatch.setattr(runtime, "QUERIES", ((4, 3),))
    runtime.main(["--models", "mamba2_nano", "--runs", "1"])
    (record,) = json.loads((folder / "runtime.json").read_text())["records"]
    assert set(record["errors"]) == {"prompt of 6", "prompt of 16", "step after 6", "step after 16"}
    (query,) = record["queries"]
    assert query["error"] == pytest.approx(query["predicted"] / query["measured"] - 1)
