"""ListOps against an evaluator of its own."""

import statistics

import pytest
import torch

from zoo.train.data import ListOps, SyntheticDataModule
from zoo.train.data.listops import SYMBOLS, encode

TASK = ListOps(min_length=6, max_length=40, max_args=5, max_depth=4)
OPERATIONS = {
    "[MIN": min, "[MAX": max, "[MED": lambda a: int(statistics.median(a)), "[SM": lambda a: sum(a) % 10,
}  # fmt: skip


def evaluate(words: list[str]) -> int:
    """With a stack."""
    stack: list[list] = [[]]
    for word in words:
        if word in OPERATIONS:
            stack.append([OPERATIONS[word]])
        elif word == "]":
            operation, *arguments = stack.pop()
            stack[-1].append(operation(arguments))
        else:
            stack[-1].append(int(word))
    ((result,),) = stack
    return result


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("[MAX 4 3 [MIN 2 3 ] 1 0 ]", 4),
        ("[SM 9 8 7 ]", 4),
        ("[MED 1 9 4 8 ]", 6),
        ("[MED 3 4 ]", 3),
        ("[MIN 5 [MED 0 9 2 ] ]", 2),
    ],
)
def test_the_evaluator_and_the_symbols(expression, result):
    assert evaluate(expression.split()) == result
    assert [SYMBOLS[token] for token in encode(expression)] == expression.split()
    with pytest.raises(ValueError, match=r"ListOps has the symbols 0 1 .*got '\[AVG'"):
        encode("[AVG 1 2 ]")


def test_values_lengths_and_depths():
    tokens, values = TASK.generate(torch.arange(500), 7)
    assert tokens.shape == (500, 40) and tokens.dtype == values.dtype == torch.int64
    deepest = 0
    for row, value in zip(tokens, values.tolist(), strict=True):
        words = [SYMBOLS[token] for token in row[row >= 0]]
        assert (row[len(words) :] == -1).all() and 6 <= len(words) <= 40
        assert evaluate(words) == value
        depth = 0
        for word in words:
            depth += word in OPERATIONS
            deepest = max(deepest, depth)
            depth -= word == "]"
    assert deepest == 4
    assert set(values.tolist()) == set(range(10))


def test_a_sample_depends_on_its_number_and_the_seed_alone():
    whole, part = TASK.generate(torch.arange(50), 3), TASK.generate(torch.tensor([41, 7]), 3)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[[41, 7]], b)
    assert not torch.equal(whole[0], TASK.generate(torch.arange(50), 4)[0])


def test_the_long_range_arena_has_its_lengths():
    tokens, _ = ListOps().generate(torch.arange(3), 0)
    assert tokens.shape == (3, 2000) and ((tokens >= 0).sum(1) >= 500).all()


def test_in_a_data_module():
    data = SyntheticDataModule(TASK, batch_size=4, train_samples=16, val_samples=8, test_samples=8)
    tokens, values = next(iter(data.train_dataloader()))
    assert tokens.shape == (4, 40) and values.shape == (4,)


@pytest.mark.parametrize("options", [{"max_args": 1}, {"max_depth": 0}, {"vocab_size": 20}])
def test_errors(options):
    with pytest.raises(ValueError, match="max_args must be >= 2, max_depth >= 1 and vocab_size 15"):
        ListOps(**options)
    with pytest.raises(ValueError, match="to the 5 tokens of the longest expression, got min_length=6"):
        ListOps(min_length=6, max_length=9, max_args=3, max_depth=1)
    with pytest.raises(ValueError, match="min_length must be from 4 to max_length"):
        ListOps(min_length=3)
