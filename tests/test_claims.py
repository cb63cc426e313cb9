"""Claims: every family has one, verdicts follow from bounds, a failure stays alone, finished ones are not run again."""

from __future__ import annotations

import json
import math

import pytest
import torch

import zoo
from zoo.benchmarks.claims import command, declare
from zoo.benchmarks.claims.command import Options, measure, run
from zoo.benchmarks.claims.declare import Bound, Found, beyond, claim, declared
from zoo.benchmarks.claims.results import read
from zoo.benchmarks.claims.tools import apart, printed
from zoo.cli.parser import main

ASKED = {"paper": "2312.00752", "says": "It holds.", "source": "section 1", "evidence": "cost"}


@pytest.fixture(autouse=True)
def threads():
    """As many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def alone(monkeypatch):
    """No claims but those that a test declares; in this process, as another would not know them."""
    monkeypatch.setattr(declare, "CLAIMS", {})
    for module in ("command", "results"):
        monkeypatch.setattr(f"zoo.benchmarks.claims.{module}.declared", lambda: declare.CLAIMS)
    monkeypatch.setattr(command, "run_steps", one_by_one)


def one_by_one(steps, results, *, seconds, processes, say):
    """As the runner, without its processes."""
    for step in steps:
        if results.read(step).get("status") != "ok":
            results.write(
                step, "ok", 0.0, {name: one for found in step.run(*step.arguments) for name, one in found.items()}
            )
            say(step.name)


def declared_here(name, value, **bound):
    def found():
        """Counted."""
        return Found(value, {"of": name})

    found.__name__ = name
    claim("mamba", ASKED["paper"], **{k: v for k, v in ASKED.items() if k != "paper"}, value="share", **bound)(found)


def test_every_family_has_a_claim_about_it():
    """A new family's first claim is a line in benchmarks/claims/sizes.py or states.py."""
    claimed = {family for one in declared().values() for family in one.families}
    assert claimed <= set(zoo.list_families()), f"no such families: {claimed - set(zoo.list_families())}"
    missing = set(zoo.list_families()) - {family for one in declared().values() if one.run for family in one.families}
    assert not missing, (
        f"families without a claim that is measured: {sorted(missing)}; see benchmarks/claims/declare.py"
    )


@pytest.mark.parametrize("name", ["vim_sizes", "mamba_state", "mcunet_patches", "axial_operations_over_pixels"])
def test_cheap_claims_are_met(name):
    (found,) = [found[name] for found in measure([name], torch.get_num_threads())]
    assert declared()[name].verdict(found["found"]) == "met" and json.dumps(found["details"])


def test_verdicts_follow_from_bounds():
    assert Bound(at_least=1.0).holds(1.0) and not Bound(at_least=1.0).holds(0.99)
    assert Bound(at_most=1.0).holds(1.0) and not Bound(at_most=1.0).holds(math.nan)
    assert [str(Bound(*ends)) for ends in ((0.5, None), (None, 2.0), (1.0, 1.0), (1.0, 2.0))] == [
        "≥ 0.5", "≤ 2", "= 1", "1 to 2",
    ]  # fmt: skip


def test_printed_figures():
    assert printed("46.7B") == (46.7e9, 0.1e9) and printed("350M") == (350e6, 10e6) and printed("14862") == (14862, 1)
    assert apart(51_570_323_328, "52B") < 1 < apart(51_570_323_328, "53B")


def test_what_was_measured_is_kept_until_the_code_changes(alone, tmp_path, monkeypatch):
    path, said = tmp_path / "claims.json", []
    declared_here("higher", 0.9, at_least=0.5)
    declared_here("lower", 0.9, at_most=0.5)
    beyond("far", "mamba", ASKED["paper"], says="It is best.", source="table 1: 6.22", why="It takes 300 B tokens.")
    options = Options(path=path)
    assert [r["verdict"] for r in run(options, said.append)] == ["met", "missed", "out of reach"]
    content = json.loads(path.read_text())
    assert (content["subject"], content["schema"]) == ("claims", 1) and content["machine"]["packages"]["torch"]
    assert [one["name"] for one in content["claims"]] == ["far", "higher", "lower"]
    first = content["claims"][1]
    assert first["bound"] == {"at_least": 0.5, "at_most": None} and first["bound_text"] == "≥ 0.5"
    assert (first["found"], first["details"], first["measured"]) == (0.9, {"of": "higher"}, "Counted.")
    page = (tmp_path / "claims.md").read_text()
    assert "1 met, 1 missed, 1 out of reach" in page
    wrong = page[page.index("### Missed") : page.index("### Verdicts")]
    assert (
        "| lower |" in wrong
        and "higher" not in wrong
        and f"| {first['date'].partition(' ')[0]} | {first['commit']} |" in page
    )

    run(options, said.append)
    assert said == ["higher", "lower"]  # in the first run
    run(Options(names=("low*",), fresh=True, path=path), said.append)
    assert said[2:] == ["lower"] and list(read(path)) == ["far", "higher", "lower"]
    monkeypatch.setattr("zoo.benchmarks.claims.results.sources", lambda *_: "other code")
    run(options, said.append)
    assert said[3:] == ["higher", "lower"]


def test_a_failure_is_recorded_and_run_again(alone, tmp_path, monkeypatch):
    def failing(steps, results, **_):
        for step in steps:
            results.write(step, "failed", 1.0, {}, "Traceback\nValueError: no such thing")

    path = tmp_path / "claims.json"
    declared_here("higher", 0.9, at_least=0.5)
    monkeypatch.setattr(command, "run_steps", failing)
    (record,) = run(Options(path=path), print)
    assert (record["verdict"], record["error"], record["found"]) == ("failed", "ValueError: no such thing", None)
    monkeypatch.setattr(command, "run_steps", one_by_one)
    (record,) = run(Options(path=path), lambda _: None)
    assert (record["verdict"], record["error"]) == ("met", None)


def test_claims_that_share_a_training_are_one_step_and_each_is_kept_as_it_comes(alone, tmp_path, monkeypatch):
    path, said, asked = tmp_path / "claims.json", [], []
    for name in ("first", "other", "second"):
        declared_here(name, 0.9, at_least=0.5, shares="" if name == "other" else "a training")

    def broken(steps, results, **_):
        for step in steps:
            asked.append((step.name, step.seconds))
            found = next(iter(step.run(*step.arguments)))
            results.write(step, "running", 0.0, found)
            results.write(step, "failed", 1.0, found, "ValueError: no more")

    monkeypatch.setattr(command, "run_steps", broken)
    verdicts = {record["name"]: record["verdict"] for record in run(Options(path=path), print)}
    assert asked == [("first, second", 240.0), ("other", 120.0)]
    assert verdicts == {"first": "met", "other": "met", "second": "failed"}
    monkeypatch.setattr(command, "run_steps", one_by_one)
    assert {record["verdict"] for record in run(Options(path=path), said.append)} == {"met"}
    assert said == ["first, second"]


def test_a_claim_must_say_everything(alone):
    with pytest.raises(ValueError, match="a claim needs a bound"):
        declared_here("higher", 0.9)
    declared_here("higher", 0.9, at_least=0.5)
    with pytest.raises(ValueError, match="named 'higher' is already declared"):
        declared_here("higher", 0.9, at_least=0.5)
    with pytest.raises(ValueError, match="far does not say all"):
        beyond("far", "mamba", ASKED["paper"], says="It is best.", source="", why="Too large.")


def test_command(alone, tmp_path, capsys):
    declared_here("higher", 0.9, at_least=0.5)
    assert main(["claims", "--list"]) == 0 and "It holds." in capsys.readouterr().out
    path = str(tmp_path / "claims.json")
    assert main(["claims", "hi*", "--quick", "--output", path]) == 0
    assert "1 claims: 1 met" in capsys.readouterr().out
    assert json.loads((tmp_path / "claims.json").read_text())["command"] == "zoo claims 'hi*' --quick"
    (tmp_path / "claims.json").write_text('{"subject": "claims", "schema": 9}')
    for arguments, message in (
        (["--output", path], "must hold results of claims of schema 1, got subject 'claims', schema 9"),
        (["higer"], "unknown claim 'higer', did you mean 'higher'?"),
        (["--family", "mambo"], "unknown family 'mambo', did you mean"),
    ):
        assert main(["claims", *arguments]) == 2
        assert message in capsys.readouterr().err
