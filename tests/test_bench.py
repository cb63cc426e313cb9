"""`zoo bench NAME`: what is timed was compared, what was done is not done again, a failure stays with its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import zoo
from zoo.benchmarks import common, compare, costs, peers
from zoo.benchmarks.common import in_processes, save, write_whole
from zoo.benchmarks.compare import Kept, measured, parser, plans
from zoo.cli import main

QUICK = ["--lengths", "8", "--budget", "0.001"]


def plan(*arguments: str) -> compare.Plan:
    (found,) = plans(parser().parse_args([*arguments, *QUICK]))
    return found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "STEPS", 2)


def test_records_of_models_in_turns(short) -> None:
    wanted = plan("transformer_nano", "mamba2_nano", "--batches", "2")
    records = [record for found in measured(wanted) for record in found.values()]
    assert [(r["model"], r["measure"]) for r in records] == [
        (name, kind) for kind in compare.MEASURES for name in ("transformer_nano", "mamba2_nano")
    ]
    assert all(r["inputs"] == [2, 8] and min(r["runs"]["zoo"]) > -1 and r["beside"] for r in records)
    assert [r["items"] for r in records] == [16, 16, 16, 16, 2, 2]
    assert all(r["bytes"]["zoo"] > 0 for r in records[:4])


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
def test_a_peer_has_the_same_weights_and_is_compared_first(short, monkeypatch) -> None:
    wanted = plan("transformer_nano", "--against", "transformers")
    records = [record for found in measured(wanted) for record in found.values()]
    assert all(set(r["runs"]) == {"zoo", "transformers"} and r["apart"]["transformers"] < 1e-5 for r in records)

    def other(name, model, folder, room):
        return peers.Side(zoo.create_model(name))

    monkeypatch.setitem(peers.BUILDERS, "transformers", other)  # of other weights
    monkeypatch.setattr(compare, "interleaved", pytest.fail)
    with pytest.raises(ValueError, match="results differ, so nothing is timed"):
        list(measured(wanted))


def test_timm_by_its_name(short) -> None:
    record = next(measured(plan("shvit_s1", "--against", "timm", "--measures", "forward", "--sizes", "64")))
    (found,) = record.values()
    assert found["inputs"] == [1, 3, 64, 64] and found["apart"]["timm"] < 1e-5
    with pytest.raises(ValueError, match="timm has no vit_nano"):
        list(measured(plan("vit_nano", "--against", "timm")))


def test_what_no_peer_has_is_told_first_and_nothing_is_written(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(compare, "run_steps", pytest.fail)
    with pytest.raises(SystemExit) as stopped:
        compare.main(["vit_nano", "--against", "timm", "--output", str(tmp_path / "found.json")])
    told = capsys.readouterr()
    assert stopped.value.code == 2 and "nothing can be measured: timm has no vit_nano" in told.err and not told.out
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_whole_writes_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    def failing(steps, kept, **_) -> None:
        for step in steps:
            kept.write(step, "failed", 1.0, {}, "ValueError: no")

    monkeypatch.setattr(compare, "run_steps", failing)
    assert compare.main(["vit_nano", "--output", str(tmp_path / "found.json")]) == 1
    assert not capsys.readouterr().out and not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_with_the_figure(monkeypatch) -> None:
    wanted = plan("transformer_130m", "--measures", "forward")
    monkeypatch.setattr(compare.measure, "free_memory", lambda device: 400 << 20)
    with pytest.raises(ValueError, match=r"^0\.5 GiB are needed and cpu has 0\.4 GiB free"):
        next(measured(wanted))


def test_what_was_done_is_kept_and_not_done_again(short, tmp_path: Path) -> None:
    file, wanted = tmp_path / "models.json", plan("vit_nano", "--measures", "forward")
    step = compare.Step("vit_nano", measured, (wanted,))
    kept = Kept(file)
    assert kept.read(step) == {}
    kept.write(step, "running", 0.0, {})
    assert Kept(file).read(step) == {}  # it was broken off
    found = {key: record for part in measured(wanted) for key, record in part.items()}
    kept.write(step, "ok", 1.0, found)
    again = Kept(file)
    assert again.read(step)["status"] == "ok" and again.records == kept.records
    again.code = "another"
    assert again.read(step) == {}
    again.write(step, "failed", 1.0, {}, "Traceback\nValueError: no")
    assert again.failed == {"vit_nano": "ValueError: no"} and len(again.records) == 1  # older figures stay
    content = json.loads(file.read_text())
    assert content["schema"] == 1 and {"processor", "packages", "commit"} <= set(content["machine"])
    file.write_text(json.dumps(content | {"schema": 0}))
    with pytest.raises(ValueError, match="is of schema 0"):
        Kept(file)


@pytest.mark.slow
def test_one_failing_model_does_not_lose_the_rest(tmp_path: Path, capfd) -> None:
    """Each in a process: the first has no such peer."""
    file = tmp_path / "models.json"
    arguments = ["bench", "vit_nano", "shvit_s1", "--apart", "--against", "timm", "--measures", "forward", *QUICK]
    assert main([*arguments, "--sizes", "64", "--output", str(file)]) == 1
    records = json.loads(file.read_text())["records"]
    assert [r["model"] for r in records] == ["shvit_s1"] and "| shvit_s1, forward, 1, 3 × 64 × 64 |" in (
        tmp_path / "models.md"
    ).read_text()
    assert "vit_nano: failed" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mamba3_nano"], "'mamba2_nano'?"),
        (["vit_nano", "--batches", "0"], "--batches: must be at least 1, got 0"),
        (["vit_nano", "--against", "fla"], "--against fla needs fla, which is not installed"),
        (["vit_nano", "--device", "cuda"], "device must be one that is here"),
        (["vit_nano", "--device", "nonsense"], "NVIDIA GPU where there is one, got nonsense"),
    ],
)
def test_what_cannot_be_measured_is_told_first(arguments, says, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gap", "--models", "vit_nan"], "--models: unknown model 'vit_nan', did you mean 'vit_nano'"),
        (["recall", "--models", "mambo*"], "--models: 'mambo*' fits none of attention; "),
        (["prefix", "--prompts", "0"], "--prompts: must be at least 1, got 0"),
        (["needle", "--seed", "-1"], "--seed: must be at least 0, got -1"),
    ],
)
def test_what_a_subject_cannot_measure_is_told_first(arguments, says, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_a_file_is_its_old_self_or_the_new_one(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.json"
    save("a", {"machine": costs.machine(), "records": []}, "text", tmp_path)
    before = file.read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_whole(file, "new")
    assert file.read_text() == before and sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.md"]


@pytest.mark.slow
def test_a_job_that_fails_leaves_the_others_records() -> None:
    records, failed = in_processes(json.loads, {"three": ('{"half": 1.5}',), "less": ("",), "four": ('{"half": 2.0}',)})
    assert records == [{"half": 1.5}, {"half": 2.0}]
    assert failed == {"less": "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"}


def test_times_of_a_prompt_and_of_a_token_after_it(monkeypatch) -> None:
    def turns(calls, *, budget):
        for _ in range(3):
            calls["a"]()
        return {"a": [0.0, 0.0]}, {}  # the first was a warm-up

    prompts = iter([9.0, 1.25, 1.5])
    monkeypatch.setattr(common, "interleaved", turns)
    monkeypatch.setattr(common.time, "perf_counter", lambda: 100.0)

    def moments(count):
        first = 100 + next(prompts)
        return [first + 0.25 * index for index in range(count)]

    assert common.prompt_and_step({"a": moments}, 4, 1.0) == {"a": ([1.25, 1.5], [0.25, 0.25])}


def test_costs_are_those_of_the_profile_and_counted_once(tmp_path, monkeypatch) -> None:
    assert costs.counted("dfa3d_nano")["flops"] > 0  # it hands its own parameters on
    record = costs.counted("moe_nano")
    profile = zoo.profile("moe_nano", tokens=1024, device="meta", training=False)
    assert record["flops"] == profile.phase("forward").flops and record["active_parameters"] < record["parameters"]
    grown = costs.over_length("transformer_nano")
    assert (
        grown is not None and grown["state"][1] == 4 * grown["state"][0] and grown["flops"][1] > 4 * grown["flops"][0]
    )
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    assert costs.remembered(["vit_nano"])["vit_nano"]["parameters"] == zoo.model_info("vit_nano").num_parameters
    monkeypatch.setattr(costs, "counted", pytest.fail)
    assert costs.remembered(["vit_nano"])["vit_nano"]["items"] == 1  # not counted again
    assert costs.kept([record, record | {"name": "gone"}, grown | {"digest": "other"}]) == {"moe_nano": record}
