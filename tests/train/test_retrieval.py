"""Demonstrations: what is found, what is never found, and answers that weigh several."""

from __future__ import annotations

import pytest
import torch

from zoo.train.data import Demonstrations, SyntheticDataModule
from zoo.train.retrieval import bags, marginal, nearest


def test_the_nearest_are_those_of_all_products_and_never_the_item_itself():
    keys, queries = torch.randn(40, 6), torch.randn(5, 6)
    index, scores = nearest(queries, keys, 3)
    for row, query in enumerate(queries):
        expected = sorted(range(40), key=lambda i: -float(query @ keys[i]))[:3]
        assert index[row].tolist() == expected
        torch.testing.assert_close(scores[row], keys[expected] @ query)
    ids = torch.tensor([7, -1])
    own, _ = nearest(keys[[7, 9]], keys, 39, ids)
    assert 7 not in own[0] and set(own[0].tolist()) == set(range(40)) - {7} and 9 in own[1]
    with pytest.raises(ValueError, match="count must be at most the 39 keys"):
        nearest(keys, keys, 40, torch.arange(40))


def test_the_marginal_is_a_mixture_whose_order_does_not_count():
    log_probs, scores = (
        torch.randn(3, 4, 7, dtype=torch.float64).log_softmax(-1),
        torch.randn(3, 4, dtype=torch.float64),
    )
    found = marginal(log_probs, scores)
    torch.testing.assert_close(found.exp(), (scores.softmax(1)[..., None] * log_probs.exp()).sum(1))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    order = torch.randperm(4)
    torch.testing.assert_close(marginal(log_probs[:, order], scores[:, order]), found)
    torch.testing.assert_close(marginal(log_probs[:, :1], scores[:, :1]), log_probs[:, 0])


def test_items_come_after_solved_ones_of_their_words():
    task = Demonstrations(shots=3, tasks=6, unseen=4, topics=9, contents=5, answers=7)
    tokens, labels = task.generate(torch.arange(50), 3)
    assert tokens.shape == (50, 20) and task.length == 20 and int(tokens.max()) < task.vocab_size == 21
    assert torch.equal(labels[:, -1], tokens[:, -1]) and (labels[:, :-1] == -100).all()
    bank = task.bank
    assert len(bank) == 2 * 5 * 10
    for row in tokens.view(50, 4, 5):
        asked, shown = row[-1], row[:-1]
        (places,) = (bank == asked).all(1).nonzero(as_tuple=True)
        assert all((bank == one).all(1).any() for one in shown) and int(places[0]) < 60
        keys = bags(bank[:, :4], task.vocab_size)
        products = keys @ bags(asked[None, :4], task.vocab_size)[0]
        own = products[places[0]]
        assert (
            ((bags(shown[:, :4], task.vocab_size) @ bags(asked[None, :4], task.vocab_size)[0]).sort().values[-1]) == own
        )
        assert shown[-1, 3] == asked[3] and shown[-1, 4] == asked[4], "the other copy is the nearest"


def test_no_item_finds_itself_and_held_out_tasks_are_others():
    for retrieval in ("nearest", "random"):
        task = Demonstrations(shots=2, retrieval=retrieval, tasks=5, unseen=3, contents=4)  # pyright: ignore[reportArgumentType]
        asked = torch.arange(len(task.bank))
        found = task.found(asked, asked, 0)
        assert found.shape == (64, 2) and not (found == asked[:, None]).any()
        assert int(found.min()) >= 0 and int(found.max()) < 64
    data = SyntheticDataModule(Demonstrations(tasks=5, unseen=3, contents=4), batch_size=8, train_samples=200)
    data.setup()
    bank, asked = data.task.bank, {}  # pyright: ignore[reportAttributeAccessIssue]
    for split, source in data.sources.items():
        tokens, _ = source.fetch(torch.arange(len(source)), 0)
        rows = (tokens[:, None, -5:] == bank).all(2).nonzero()[:, 1]
        asked[split] = set((rows // 8).tolist())
    assert asked == {"train": set(range(5)), "val": {5, 6, 7}, "test": {5, 6, 7}}
    plain, _ = Demonstrations(shots=0).generate(torch.arange(4), 0)
    assert plain.shape == (4, 5)


def test_errors():
    with pytest.raises(ValueError, match="retrieval must be 'nearest' or 'random'"):
        Demonstrations(retrieval="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="topics must be at least 3"):
        Demonstrations(topics=2)
