"""Generated tasks: each against the definition of its paper, read off the sequences themselves."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from zoo.train.data import (
    MQAR,
    InductionHeads,
    KeyValues,
    Mixture,
    Passkeys,
    SelectiveCopying,
    SyntheticDataModule,
    SyntheticTask,
    VariableTracking,
)

TASKS = [
    MQAR(seq_len=64, vocab_size=128, num_kv_pairs=8),
    MQAR(seq_len=32, vocab_size=40, num_kv_pairs=4, num_passes=2, random_non_queries=False),
    SelectiveCopying(seq_len=40, vocab_size=9, num_data=6),
    InductionHeads(seq_len=20, vocab_size=7),
    Mixture([Passkeys(), KeyValues(queries=2), VariableTracking(), MQAR(seq_len=64, vocab_size=128)]),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_samples_are_functions_of_seed_and_index(task: SyntheticTask):
    tokens, labels = task.generate(torch.arange(64), 3)
    assert tokens.shape == labels.shape == (64, task.length) and tokens.dtype == labels.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < task.vocab_size
    assert (labels[:, 0] == -100).all()
    some = torch.tensor([60, 2, 31])
    for whole, part in zip((tokens, labels), task.generate(some, 3), strict=True):
        assert torch.equal(part, whole[some])
    assert len({tuple(row) for row in tokens.tolist()}) == 64
    assert not torch.equal(task.generate(torch.arange(64), 4)[0], tokens)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("fill", [True, False])
def test_mqar_labels_are_the_values_bound_to_their_keys(fill: bool, passes: int):
    task = MQAR(seq_len=48, vocab_size=64, num_kv_pairs=6, num_passes=passes, random_non_queries=fill)
    tokens, labels = task.generate(torch.arange(200), 0)
    context = 12 * passes
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        bound = dict(zip(row[0:12:2], row[1:12:2], strict=True))
        assert row[:context] == row[:12] * passes
        assert len(bound) == 6 and all(1 <= key < 32 for key in bound)
        assert len(set(bound.values())) == 6 and all(32 <= value < 64 for value in bound.values())
        asked = {place - 1: answer for place, answer in enumerate(answers) if answer != -100}
        assert {row[place]: answer for place, answer in asked.items()} == bound  # each key once, with its value
        assert all(place >= context and place % 2 == 0 for place in asked)
        if not fill:
            assert all(token == 0 for place, token in enumerate(row) if place >= context and place not in asked)
    if fill:
        assert (tokens[:, context:] == 0).float().mean() < 0.05


def test_mqar_places_its_first_query_by_the_power_law():
    task = MQAR(seq_len=40, vocab_size=64, num_kv_pairs=2, power_a=0.1)
    tokens, labels = task.generate(torch.arange(20_000), 0)
    places = torch.zeros_like(tokens[:, 0])
    for key in (0, 2):  # the key of a pair, at position 0 or 2, is asked for in one of 18 slots
        value = tokens[:, key + 1 : key + 2]
        places = ((labels == value).int().argmax(1) - 1 - 4) // 2
        counts = np.bincount(places.numpy(), minlength=18)
        odds = np.arange(1, 19) ** (0.1 - 1.0)
        odds /= odds.sum()
        if key == 0:  # drawn first: exactly the power law
            expected = odds
        else:  # drawn second, from what the first left over
            expected = np.array(
                [sum(odds[i] * odds[j] / (1 - odds[i]) for i in range(18) if i != j) for j in range(18)]
            )
        assert ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum() < 40.8  # chi-squared, 17 df, p = 0.001


def test_mqar_answers_fit_even_from_the_last_slot():
    task = MQAR(seq_len=16, vocab_size=20, num_kv_pairs=2, random_non_queries=False)
    labels = task.generate(torch.arange(500), 1)[1]
    assert ((labels != -100).sum(1) == 2).all()
    assert (labels[:, 15] != -100).any()  # the last slot's answer still has a place


def test_selective_copying_asks_for_the_data_in_order():
    task = SelectiveCopying(seq_len=30, vocab_size=8, num_data=5)
    tokens, labels = task.generate(torch.arange(400), 0)
    assert task.length == 36 == tokens.shape[1]
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        data = [token for token in row[:30] if token != 0]
        assert len(data) == 5 and all(1 <= token < 7 for token in data)
        assert row[30:] == [7] * 6
        assert answers == [-100] * 31 + data
    places = tokens[:, :30].ne(0).float().mean(0)
    assert abs(places - 5 / 30).max() < 0.08  # every place is as likely
    assert set(tokens[:, :30].unique().tolist()) == set(range(7))


def test_induction_heads_ask_for_what_followed_the_only_special_token():
    task = InductionHeads(seq_len=12, vocab_size=6)
    tokens, labels = task.generate(torch.arange(600), 0)
    firsts = set()
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        first, last = (place for place, token in enumerate(row) if token == 5)
        assert last == 11 and row[first + 1] == answers[12] == row[12] != 5
        assert answers[:12] == [-100] * 12
        firsts.add(first)
    assert firsts == set(range(10))
    assert set(labels[:, -1].tolist()) == set(range(5))


def test_splits_never_share_a_sequence_and_held_out_ones_do_not_depend_on_the_seed():
    data, other = (
        SyntheticDataModule(TASKS[0], seed=seed, train_samples=300, val_samples=50, test_samples=60, batch_size=10)
        for seed in (0, 1)
    )
    assert data.vocab_size == 128

    def sequences(loader) -> set[tuple[int, ...]]:
        return {tuple(row) for tokens, _ in loader for row in tokens.tolist()}

    train = data.train_dataloader()
    parts = [sequences(train), sequences(train), sequences(data.val_dataloader()), sequences(data.test_dataloader())]
    assert list(map(len, parts)) == [300, 300, 50, 60]
    assert len(set.union(*parts)) == 710  # a second epoch is new, too
    assert sequences(other.val_dataloader()) == parts[2] and sequences(other.test_dataloader()) == parts[3]
    assert not sequences(other.train_dataloader()) & parts[0]


def test_fixed_training_set_comes_back_in_another_order():
    data = pickle.loads(pickle.dumps(SyntheticDataModule(TASKS[3], train_samples=40, batch_size=8, resample=False)))
    loader = data.train_dataloader()
    first, second = (torch.cat([tokens for tokens, _ in loader]).tolist() for _ in range(2))
    assert first != second and sorted(first) == sorted(second)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (MQAR, {"seq_len": 63}, "seq_len must be even"),
        (MQAR, {"seq_len": 32, "num_kv_pairs": 9}, "at least 36 tokens for num_kv_pairs=9.*got 32"),
        (MQAR, {"vocab_size": 64}, "vocab_size must be above seq_len, got 64 and 64"),
        (MQAR, {"power_a": 0.0}, "power_a=0.0"),
        (MQAR, {"num_kv_pairs": 0}, "num_kv_pairs=0"),
        (SelectiveCopying, {"seq_len": 8, "num_data": 9}, "num_data must be in .*num_data=9, seq_len=8"),
        (SelectiveCopying, {"vocab_size": 2}, "vocab_size must be >= 3.*got 2"),
        (InductionHeads, {"seq_len": 2}, "seq_len must be >= 3.*got 2"),
        (InductionHeads, {"vocab_size": 2}, "vocab_size must be >= 3.*got 2"),
    ],
)
def test_errors(task: type, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_error_in_samples():
    with pytest.raises(ValueError, match="val_samples must be >= 1, got 0"):
        SyntheticDataModule(TASKS[0], val_samples=0)
