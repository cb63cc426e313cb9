"""`zoo bench vision_language`: every way keeps what it was told to, and all of it as the plain model does."""

from __future__ import annotations

from typing import Any

import pytest

from zoo.benchmarks import vision_language
from zoo.benchmarks.picture_tokens import ALL, PLAIN, WAYS, rounds


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


@pytest.mark.parametrize("way", [name for name in WAYS if ALL in WAYS[name].budgets and name != PLAIN])
def test_what_is_kept(subject, way):
    """All tokens: the plain model's bits. Fewer: so many in every layer, or in all but the one that chooses, whose
    prompts take fewer FLOPs where the layers see fewer tokens."""
    every, fewer = subject.measured(way, ALL), subject.measured(way, 8)
    assert every["same"] is True and every["kept"] == ALL
    assert fewer["same"] is None and fewer["kept"] == ((ALL + 8 + 8) / 3 if way == "EfficientVLA" else 8)
    assert fewer["token_flops"] < every["token_flops"]
    if not way.startswith("LOOK-M"):  # which forgets what was read
        assert fewer["prompt_flops"] < every["prompt_flops"]


def test_a_frame_is_one_token(subject):
    found = subject.measured("VideoScan", 1)
    assert found["kept"] == 1 and 0 <= found["accuracy"] <= 1 and found["same"] is None


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
    columns, rows = vision_language.show(records)
    assert len(columns) == len(rows[0]) == 7 and [row[-1] for row in rows] == ["", ""]


def test_expectations_are_of_what_is_measured(tmp_path):
    for one in vision_language.EXPECTED:
        assert one.budget in WAYS[one.way].budgets and one.beside in WAYS
    assert rounds(36, 7) == (18, 9, 2) and sum(rounds(36, 1)) == 35 and rounds(36, 36) == ()
    records = [record(PLAIN, ALL, 0.9, same=True), *(record("VTC-CLS", n, n / 40) for n in (16, 8))]
    vision_language.plot(records, tmp_path / "made.png")
    assert (tmp_path / "made.png").stat().st_size > 5000
