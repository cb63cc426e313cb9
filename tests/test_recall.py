"""The recall benchmark: what it scores, what it calls a state, and that it goes on where it stopped."""

import json

import pytest
import torch
from torch import nn

from zoo.benchmarks import needle, recall
from zoo.train.data import MQAR

TASK = MQAR(seq_len=16, vocab_size=20, num_kv_pairs=2, random_non_queries=False)


class Oracle(nn.Module):
    """Answers each query by the value behind the first sight of its key, all others by token 0."""

    def forward(self, tokens):
        earlier = (tokens[:, :, None] == tokens[:, None, :]).float().tril(-1) * (tokens[:, :, None] > 0)
        place = earlier.argmax(-1) + 1
        answers = torch.where(earlier.any(-1), tokens.gather(1, place), 0)
        return nn.functional.one_hot(answers, 20).float()


class Nothing(nn.Module):
    def forward(self, tokens):
        return nn.functional.one_hot(torch.zeros_like(tokens), 20).float()


def test_accuracy_counts_the_scored_positions_alone():
    tokens, labels = TASK.generate(torch.arange(600), 3)
    assert recall.accuracy(Oracle(), tokens, labels) == 1.0
    assert recall.accuracy(Nothing(), tokens, labels) == 0.0
    shifted = labels.masked_fill(torch.rand(labels.shape) < 0.5, recall.IGNORED)
    assert recall.accuracy(Oracle(), tokens, shifted) == 1.0


@pytest.mark.parametrize(("name", "grows"), [("attention", True), ("based, conv + taylor, feature dim 2", False)])
def test_state_bytes_grow_with_length_for_attention_alone(name, grows):
    model = recall.build(recall.MODELS[name], TASK)
    short, long = recall.state_bytes(model, 16), recall.state_bytes(model, 64)
    assert (long == 4 * short) if grows else (long == short)


def test_all_subjects_have_the_same_width_and_depth():
    for subject in recall.MODELS.values():
        config = recall.build(subject, TASK).config
        assert (config.dim, config.depth, config.vocab_size) == (64, 2, 20)


def test_measured_saved_and_not_measured_again(tmp_path, monkeypatch):
    name = "based, conv + window 32"
    monkeypatch.setattr(recall, "RESULTS", tmp_path)
    monkeypatch.setattr(recall, "TASKS", {"mqar": TASK})
    monkeypatch.setattr(recall, "LEARNING_RATES", (6e-3,))
    arguments = ["--models", name, "--updates", "200", "--batch-size", "32"]
    recall.main(arguments)
    (record,) = json.loads((tmp_path / "recall.json").read_text())["records"]
    assert record["test"] > 0.5  # guessing one of the two values seen gives half of it, of all values a tenth
    assert name in (tmp_path / "recall.md").read_text() and (tmp_path / "recall.png").exists()

    monkeypatch.setattr(recall, "measure", lambda *_: pytest.fail("measured what the results hold"))
    recall.main(arguments)
    assert json.loads((tmp_path / "recall.json").read_text())["records"] == [record]
    with pytest.raises(pytest.fail.Exception, match="measured"):  # other settings: other results
        recall.main([*arguments[:2], "--updates", "100"])


def test_needle_says_what_was_missed(tmp_path, monkeypatch):
    """Untrained models answer nothing."""
    monkeypatch.setattr(needle, "RESULTS", tmp_path)
    monkeypatch.setattr(needle, "TASKS", dict.fromkeys(needle.TIMES, TASK))
    monkeypatch.setattr(needle, "ASKED", 10)
    needle.main(["--updates", "1", "--batch-size", "2"])
    found = json.loads((tmp_path / "needle.json").read_text())
    assert found["verdict"] == "missed" and [r["updates"] for r in found["records"]] == [1, 1]
    assert "Missed." in (tmp_path / "needle.md").read_text()
    right = [{"accuracy": {needle.TIMES[-1]: share}} for share in (0.95, 0.5)]
    assert needle.verdict(right) == "met" and needle.verdict(right[::-1]) == "missed"
