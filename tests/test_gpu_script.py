"""`make gpu` on a machine without a GPU: every step runs at its smallest, and what goes wrong is recorded."""

from __future__ import annotations

import json
import os
import time

import pytest

from zoo.benchmarks.gpu.report import blocks, report
from zoo.benchmarks.gpu.script import main, steps
from zoo.benchmarks.runner import Results, Step, run_steps

DRY = ["--device", "cpu", "--tiny"]


def test_a_dry_run_does_everything_once(tmp_path, capsys) -> None:
    assert main([*DRY, "--work", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(steps("cpu", tiny=True)) + 1 and all(": ok, " in line for line in lines[:-1])
    records = json.loads((tmp_path / "gpu.json").read_text())
    assert all(set(r["found"].values()) == {"right"} for r in records if r["name"].startswith("right "))
    (peaks,) = [r["found"]["peaks"] for r in records if r["name"] == "machine"]
    assert peaks["bytes/s"] > 0 and peaks["FLOP/s"] > 0
    page = (tmp_path / "gpu.md").read_text()
    assert (
        "## Operations" in page and "| mamba2_nano | decode, batch 2, tokens/s | " in page and "## Not done" not in page
    )
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").iterdir()}
    assert main([*DRY, "--work", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").iterdir()}


def test_what_goes_wrong_is_recorded_and_the_next_step_goes_on(tmp_path) -> None:
    wrong = [
        Step("raises", int, ("x",)),
        Step("dies", os._exit, (3,), alone=False),
        Step("hangs", time.sleep, (600,), seconds=0.2, alone=False),
        Step("finds", list, ([{"a": 1}, {"b": 2}],)),
    ]
    said: list[str] = []
    results = Results(tmp_path, {"device": "here"})
    records = run_steps(wrong, results, seconds=100, processes=2, say=said.append)
    assert [r["status"] for r in records] == ["failed", "failed", "overran", "ok"]
    assert "invalid literal" in records[0]["error"] and records[1]["error"] == "the process ended with 3"
    assert records[3]["found"] == {"a": 1, "b": 2} and len(said) == 4
    page = report(records)
    assert "| hangs | overran | ended after 0 s |" in page
    late = [Step("late", list, ([{"a": 1}],)), wrong[3]]
    again = run_steps(late, results, seconds=0, processes=1, say=said.append)
    assert [r["status"] for r in again] == ["not reached", "ok"]
    assert not Results(tmp_path, {"device": "another"}).read(wrong[3])


def test_only_changed_block_sizes_are_kept() -> None:
    found = {
        "rope 32": {"default": {"rows": 8, "warps": 4}, "sizes": {"rows": 16, "warps": 4}},
        "rope 64": {"default": {"rows": 8}, "sizes": {"rows": 8}},
    }
    records = [{"name": "tuned rope", "found": found}, {"name": "fast rope", "found": {}}]
    assert blocks(records, "sm_90") == {"sm_90": {"rope": {"32": {"rows": 16}}}}


def test_a_gpu_is_needed(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cuda"])
    assert stopped.value.code == 2 and "--device cpu --tiny" in capsys.readouterr().err
