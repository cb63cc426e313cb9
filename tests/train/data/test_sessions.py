"""Sessions: answers read off the contexts, turns apart, and mixtures."""

from __future__ import annotations

import pytest
import torch

from zoo.train.data import (
    MQAR,
    KeyValues,
    Mixture,
    Passkeys,
    Session,
    SyntheticDataModule,
    VariableTracking,
)

SIZES = {"seq_len": 64, "vocab_size": 64, "turns": 3}


def sessions(task: Session) -> list[tuple[list[int], list[list[int]]]]:
    """Contexts, and turns without their markers; labels are just the tokens that answer."""
    tokens, labels = task.generate(torch.arange(100), 0)
    assert (labels[:, : task.context] == -100).all()
    found = []
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        starts = range(task.context, task.length, task.turn)
        assert len(starts) == task.turns and all(row[start] == 0 == answers[start] + 100 for start in starts)
        turns = [row[start + 1 : start + task.turn] for start in starts]
        for start, turn in zip(starts, turns, strict=True):
            expected = [token if it else -100 for token, it in zip(turn, task.answered, strict=True)]
            assert answers[start + 1 : start + task.turn] == expected
        assert len({tuple(turn) for turn in turns}) == task.turns
        found.append((row[: task.context], turns))
    return found


def test_passkeys_stand_once_behind_their_names_anywhere():
    places = set()
    for context, turns in sessions(Passkeys(**SIZES, needles=3, digits=3)):
        assert sum(token >= 32 for token in context) == 9 and min(context) > 0
        for name, *digits in turns:
            place = context.index(name)
            assert context.count(name) == 1 and context[place + 1 : place + 4] == digits
            assert all(context.count(digit) == 1 for digit in digits)
            places.add(place)
    assert len(places) > 40 and {0, 45} <= places


@pytest.mark.parametrize("queries", [1, 3])
def test_a_value_is_that_of_its_name(queries):
    for context, turns in sessions(KeyValues(**SIZES | {"turns": 2}, queries=queries)):
        first = len(context) % 2
        bound = dict(zip(context[first::2], context[first + 1 :: 2], strict=True))
        assert len(bound) == len(context) // 2 and all(name < 32 <= value for name, value in bound.items())
        asked = [pair for turn in turns for pair in zip(turn[::2], turn[1::2], strict=True)]
        assert len(asked) == len(dict(asked)) == 2 * queries and dict(asked).items() <= bound.items()


@pytest.mark.parametrize("hops", [1, 3])
def test_a_chain_is_told_before_it_is_used_and_ends_with_a_value(hops):
    distances = set()
    for context, turns in sessions(VariableTracking(**SIZES | {"vocab_size": 80}, hops=hops)):
        statements = torch.tensor(context[len(context) % 3 :]).view(-1, 3)
        statements = statements[statements[:, 0] > 0].tolist()
        assert all(end == 0 for _, _, end in statements)
        told: dict[int, int] = {}
        for name, what, _ in statements:
            assert name < 40 and name not in told and (what >= 40 or what in told)
            told[name] = what
        for name, *way in turns:
            assert len(way) == hops and way[-1] >= 40
            for step in way:
                assert told[name] == step
                distances.add(list(told).index(name))
                name = step
    assert len(distances) > 10


def test_a_mixture_takes_turns_and_fills_up():
    tasks = [MQAR(seq_len=32, vocab_size=64, num_kv_pairs=4), Passkeys(**SIZES, needles=3, digits=3)]
    mixture = Mixture(tasks)
    assert (mixture.length, mixture.vocab_size) == (64, 64)
    tokens, labels = mixture.generate(torch.arange(6), 5)
    for number, task in enumerate(tasks):
        for whole, part in zip((tokens, labels), task.generate(torch.arange(3), 5 + number), strict=True):
            assert torch.equal(whole[number::2, : task.length], part)
    assert (tokens[::2, 32:] == 0).all() and (labels[::2, 32:] == -100).all()


def test_a_curriculum_has_its_tasks_in_the_first_epochs_alone():
    data = SyntheticDataModule(
        KeyValues(**SIZES),
        curriculum=[KeyValues(**SIZES | {"seq_len": 20})],
        batch_size=4,
        train_samples=8,
        val_samples=4,
    )
    train = data.train_dataloader()
    lengths = [[tokens.shape[1] for tokens, _ in train] for _ in range(3)]
    assert lengths == [[20, 20], [64, 64], [64, 64]]
    assert next(iter(data.val_dataloader()))[0].shape == (4, 64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KeyValues(turns=0), "turns must be >= 1.*got turns=0"),
        (lambda: KeyValues(seq_len=12), "4 turns of 3 tokens leave no context in seq_len=12"),
        (lambda: KeyValues(vocab_size=64), "58 statements with 58 names.*vocab_size=64"),
        (lambda: VariableTracking(seq_len=64, hops=9), "statements with 0 names: turns"),
        (lambda: Passkeys(needles=17), "needles=17 of digits=4, none of them twice"),
        (lambda: SyntheticDataModule(KeyValues(), curriculum=[KeyValues(vocab_size=300)]), r"128, got \[300\]"),
        (lambda: Mixture([]), r"one vocab_size, got 0 with \[\]"),
        (lambda: Mixture([KeyValues(), KeyValues(vocab_size=300)]), r"got 2 with \[128, 300\]"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
