"""`zoo bench vision_language`: every way keeps what it was told to, and all of it as the plain model does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from zoo.benchmarks import action_head, lessons, picture_loss, picture_training, vision_language
from zoo.benchmarks.lessons import FOLDER
from zoo.benchmarks.picture_tokens import ALL, rounds
from zoo.benchmarks.picture_training import LESSONS, taught
from zoo.benchmarks.picture_ways import PLAIN, WAYS, fewer_layers

CHOSEN = {"EfficientVLA": (1, 2), "Dynamic-LLaVA": (1, 2)}
CHOSEN["EfficientVLA, 2 layers"] = (1, 1)  # layers that have all tokens, and that have what is chosen


@pytest.fixture(scope="module")
def subject() -> Any:
    made = vision_language.Subject(8)
    made.measured(PLAIN, ALL)
    return made


def record(way: str, budget: int, accuracy: float, same: bool | None = None) -> dict[str, Any]:
    return {
        "way": way, "budget": budget, "accuracy": accuracy, "same": same, "kept": 8.0, "prompt_flops": 10**6,
        "token_flops": 1e5, "accuracies": {"caption": accuracy},
    }  # fmt: skip


@pytest.mark.parametrize("way", [name for name, way in WAYS.items() if {ALL, 8} <= {*way.budgets}])
def test_what_is_kept(subject, way):
    """All tokens: the plain model's bits. Fewer: so many in every layer, or in all but the one that chooses, whose
    prompts take fewer FLOPs where the layers see fewer tokens."""
    every, fewer = subject.measured(way, ALL), subject.measured(way, 8)
    assert every["same"] is (True if WAYS[way].exact else None) and every["kept"] == ALL
    whole, left = CHOSEN.get(way, (0, 1))
    assert fewer["same"] is None and fewer["kept"] == pytest.approx((whole * ALL + left * 8) / (whole + left))
    if way != "reweaving":  # which makes vectors of what is kept anew for each token
        assert fewer["token_flops"] < every["token_flops"]
    if not way.startswith(("LOOK-M", "reweaving")):  # which forget what was read
        assert fewer["prompt_flops"] < every["prompt_flops"]


def test_only_what_has_fewer_layers_may_differ():
    assert {name for name, way in WAYS.items() if not way.exact} == {"EfficientVLA, 2 layers", "EfficientVLA, 1 layer"}


def test_layers_that_go(subject):
    """None: the plain model's bits. One: a third of the language model's FLOPs, and the others stay as they were."""
    assert subject.measured("EfficientVLA, 3 layers", ALL)["same"] is True
    found = [subject.measured(way, ALL) for way in (PLAIN, "EfficientVLA, 2 layers", "EfficientVLA, 1 layer")]
    whole, two, one = (record["prompt_flops"] for record in found)
    assert whole - two == two - one > 0.2 * whole
    blocks = [block.state_dict() for block in subject.model.language.blocks]
    for block in fewer_layers(2).language.blocks:
        assert any(all(torch.equal(t, other[name]) for name, t in block.state_dict().items()) for other in blocks)


def test_a_frame_is_one_token(subject):
    found = subject.measured("VideoScan", 1)
    assert found["kept"] == 1 and 0 <= found["accuracy"] <= 1 and found["same"] is None


@pytest.mark.parametrize(("lesson", "way", "budget"), [("reweaving", "reweaving", 8)])
def test_what_is_learnt_is_what_is_read(subject, monkeypatch, lesson, way, budget):
    """The loss of a lesson is that of its answers as they are read token by token, with gradients for all it learns."""
    monkeypatch.setattr(picture_loss, "drawn", lambda: 8)
    image, asked, answer, _ = next(row for rows in subject.alike for row in rows if len(row[2]) > 4)
    tokens = torch.tensor([[0, *[255] * ALL, *asked.tolist(), *answer]])
    labels = tokens.masked_fill(torch.arange(tokens.shape[1]) < 1 + ALL + len(asked), -100)
    model = taught(lesson)
    with torch.no_grad():
        read = WAYS[way].read(model, image[None], asked[None], budget)
        logits = [read.logits]
        for token in answer[:-1]:
            logits.append(read.further(torch.tensor([[token]]), read.state)[:, -1])
        expected = F.cross_entropy(torch.cat(logits), torch.tensor(answer))
    model, learnt = picture_training.fresh(LESSONS[lesson])
    model.load_state_dict(taught(lesson).state_dict())
    for parameter in learnt.values():
        parameter.requires_grad_()
    loss = LESSONS[lesson].loss(model, image[None], tokens, labels, 0.5)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    matrices = [parameter for parameter in learnt.values() if parameter.dim() > 1]
    assert matrices and all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in matrices)


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_changes_what_it_names_alone(lesson):
    """After two steps; what it does not name stays the bundled model's, and its file holds the rest."""
    before, _ = picture_training.fresh(LESSONS[lesson])
    model, learnt = picture_training.teach(LESSONS[lesson], 2)
    after = model.state_dict()
    changed = {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after[name])}
    assert changed and changed <= set(learnt)
    assert not any(name.startswith("vision.") for name in learnt)
    bundled = picture_training.plain().state_dict()
    assert all(torch.equal(tensor, taught(lesson).state_dict()[n]) for n, tensor in bundled.items() if n not in learnt)
    assert set(load_file(FOLDER / f"pictures_{lesson}.safetensors")) == set(learnt)


def test_weights_of_another_lesson_are_refused(monkeypatch, tmp_path):
    save_file({"language.norm.weight": torch.ones(96)}, tmp_path / "pictures_reweaving.safetensors")
    monkeypatch.setattr(lessons, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"must be those of .*reweaving.gate.*, got \['language.norm.weight'\]"):
        taught.__wrapped__("reweaving")


def test_the_command_of_lessons_writes_those_that_are_asked_for(capsys, tmp_path):
    def teach(name, steps, folder):
        assert folder == tmp_path
        return {"weight": torch.full((2, 3), float(steps), requires_grad=True)}, f", {name} is known"

    options = ["later", "--steps", "3", "--output", str(tmp_path)]
    lessons.command("picture", "a subject", ["first", "later"], teach, options)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures_later.safetensors"]
    assert capsys.readouterr().err == "later: 0 s, later is known\n"
    model = torch.nn.Linear(3, 2)
    lessons.fill(model, ["weight"], tmp_path / "pictures_later.safetensors")
    torch.testing.assert_close(model.weight.data, torch.full((2, 3), 3.0))


def test_what_was_learnt_helps():
    """Of as many tokens more are right than of those at random."""
    subject = vision_language.Subject(40)
    for way, budget in (("Dynamic-LLaVA", 12), ("reweaving", 8)):
        found = [subject.measured(name, budget)["accuracy"] for name in (way, "at random")]
        assert found[0] > found[1], way


def test_the_action_head():
    """Every step: the plain sampler's bits. The fewer compute everything, the fewer FLOPs, the further the images."""
    records = {(r["steps"], r["every"]): r for r in action_head.measured(20)}
    assert records[10, 1]["same"] is True and records[10, 2]["same"] is False
    reused = [records[10, every] for every in (1, 2, 3, 5, 10)]
    assert [r["computed"] for r in reused] == [10, 5, 4, 2, 1]
    for first, second in pairwise(reused):
        assert second["flops"] < first["flops"] and second["off"] > first["off"]
    assert records[10, None]["right"] >= 0.7
    columns, rows = action_head.show(list(records.values()))
    assert len(rows) == len(action_head.RUNS) and all(len(row) == len(columns) for row in rows)
    assert [row[-1] for row in rows] == ["", "yes", *[""] * 5]


@pytest.mark.parametrize("met", [True, False])
def test_verdicts_of_the_action_head(met):
    plain = {"every": None, "right": 0.9, "flops": 100.0, "off": 0.2}
    records = [
        {**plain, "steps": 10}, {**plain, "steps": 2}, {**plain, "steps": 10, "every": 1, "same": met},
        {"steps": 10, "every": 5, "right": 0.9 if met else 0.8, "flops": 29.0 if met else 31.0, "off": 0.1 + (not met)},
    ]  # fmt: skip
    verdicts = [row[1].split()[-1] for row in action_head.show_expected(records)]
    assert verdicts == ["met" if met else "missed"] * 4


def test_what_is_right_is_right_to_the_end(subject, monkeypatch):
    """The bundled model says most of it; no answer is right that ends otherwise."""
    plain = subject.measured(PLAIN, ALL)
    assert plain["accuracy"] >= 0.5 and set(plain["accuracies"]) == {"caption", "what", "where", "how many"}
    other = [[(*row[:2], [*row[2][:-1], 1], row[3]) for row in rows] for rows in subject.alike]
    monkeypatch.setattr(subject, "alike", other)
    assert subject.measured(PLAIN, ALL)["accuracy"] == 0


def test_a_way_that_changes_bits_is_seen(subject, monkeypatch):
    subject.measured(PLAIN, ALL)
    monkeypatch.setitem(WAYS, "noise", WAYS["VTC-CLS"])
    for key in subject.plain:
        subject.plain[key][0, 0, 0] += 1e-6
    found = subject.measured("noise", ALL)
    assert found["same"] is False
    _, rows = vision_language.show_expected([record("noise", ALL, 0.9, same=False)])
    assert rows[-1][1] == "0 of 1 missed"


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.89, "missed"), (0.9, "met")])
def test_verdicts(accuracy, verdict):
    records = [record(PLAIN, ALL, 0.9, same=True), record("LOOK-M", 8, accuracy)]
    columns, rows = vision_language.show_expected(records)
    shown = {row[0].partition(":")[0]: row[1] for row in rows}
    assert columns == ["expected", "found"] and shown["LOOK-M, 8"] == f"{accuracy / 0.9:.3f} {verdict}"
    assert shown["VTC-CLS, 16"] == ""
    fewer = record("Dynamic-LLaVA", 8, 0.9) | {"prompt_flops": 10**5 if verdict == "met" else 10**6}
    _, saved = vision_language.show_expected([*records, fewer])
    assert [row[1] for row in saved if "FLOPs saved" in row[0]] == ["0.900 met" if verdict == "met" else "0.000 missed"]
    columns, rows = vision_language.show(records)
    assert len(columns) == len(rows[0]) == 7 and [row[-1] for row in rows] == ["", ""]


def test_expectations_are_of_what_is_measured(tmp_path):
    for one in vision_language.EXPECTED:
        assert one.budget in WAYS[one.way].budgets and one.beside in WAYS
    assert rounds(36, 7) == (18, 9, 2) and sum(rounds(36, 1)) == 35 and rounds(36, 36) == ()
    records = [record(PLAIN, ALL, 0.9, same=True), *(record("VTC-CLS", n, n / 40) for n in (16, 8))]
    vision_language.plot(records, tmp_path / "made.png")
    assert (tmp_path / "made.png").stat().st_size > 5000
