"""Whatever the draft says, what comes out has the model's law: exactly, by enumeration, and in many draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.decoding import ModelDraft, accept, draw


class Chance:
    """Every way that the draws of a program may come out, one run after another, and how likely it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(torch, "multinomial", lambda law, n, generator=None: self.rows(law)[:, None])
        monkeypatch.setattr(torch, "bernoulli", lambda p, generator=None: self.rows(torch.stack([1 - p, p], 1)).to(p))
        self.path: list[tuple[int, int]] = []  # of each draw the outcome, and how many there are

    def rows(self, laws: Tensor) -> Tensor:
        return torch.tensor([self.one(law) for law in laws.double()])

    def one(self, law: Tensor) -> int:
        possible = law.nonzero()[:, 0].tolist()
        if self.depth == len(self.path):
            self.path.append((0, len(possible)))
        outcome = possible[self.path[self.depth][0]]
        self.weight *= float(law[outcome] / law.sum())
        self.depth += 1
        return outcome

    def runs(self, program: Callable[[], Any]) -> Iterator[tuple[Any, float]]:
        while True:
            self.depth, self.weight = 0, 1.0
            yield program(), self.weight
            while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
                self.path.pop()
            if not self.path:
                return
            outcome, count = self.path.pop()
            self.path.append((outcome + 1, count))


def tiny(name: str, seed: int, vocab_size: int = 2) -> Any:
    torch.manual_seed(seed)
    return zoo.create_model(name, vocab_size=vocab_size, depth=1, initializer_range=0.1, tie_embeddings=False).double()


def law_of(model: Any, prompt: list[int], length: int) -> dict[tuple[int, ...], float]:
    """Of every continuation, token by token."""
    found = {}
    for said in product(range(model.config.vocab_size), repeat=length):
        with torch.no_grad():
            chances = model.eval()(torch.tensor([[*prompt, *said]])).softmax(-1)[0, len(prompt) - 1 : -1]
        found[said] = float(chances.gather(1, torch.tensor(said)[:, None]).prod())
    return found


@pytest.mark.parametrize(("target", "length"), [("transformer_nano", 4), ("mamba2_nano", 3)])
def test_every_continuation_is_as_likely_as_without_a_draft(target, length, monkeypatch):
    """All ways through drafting, accepting and replacing, for two models of two tokens, add up to the target's law."""
    model, draft = tiny(target, 0), ModelDraft(tiny("transformer_nano", 5), length=2)
    prompt = [0, 1, 1]
    expected, found = law_of(model, prompt, length), defaultdict(float)
    apart = sum(abs(p - expected[said]) for said, p in law_of(draft.model, prompt, length).items())
    assert apart > 0.1  # the draft is another law
    for said, weight in Chance(monkeypatch).runs(lambda: zoo.generate(model, [prompt], length, draft=draft)):
        found[tuple(said[0][3:].tolist())] += weight
    assert found == pytest.approx(expected, abs=1e-12)


def test_rows_that_accept_different_lengths_keep_their_laws_apart(monkeypatch):
    """Two rows: the likelihood of both continuations is the product of the two, though one holds the other back."""
    model, draft = tiny("transformer_nano", 0), ModelDraft(tiny("transformer_nano", 5), length=1)
    prompts = torch.tensor([[0, 1], [1, 1]])
    laws, found = [law_of(model, row, 3) for row in prompts.tolist()], defaultdict(float)
    for said, weight in Chance(monkeypatch).runs(lambda: zoo.generate(model, prompts, 3, draft=draft)):
        found[tuple(tuple(row) for row in said[:, 2:].tolist())] += weight
    both = {(one, other): p * q for one, p in laws[0].items() for other, q in laws[1].items()}
    assert found == pytest.approx(both, abs=1e-12)


def test_a_chi_squared_test_against_the_targets_law():
    """40 000 draws; the statistic of 6 degrees of freedom stays below its 99.9 % quantile, and that of the draft's own
    draws, or of a replacement drawn from p itself, is far beyond."""
    torch.manual_seed(0)
    count, generator = 40_000, torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 7).mul(0.8).softmax(-1)
    drafted = draw(q.expand(count, -1), generator)
    said, accepted = accept(p.expand(count, -1), q.expand(count, -1), drafted, generator)
    wrong = torch.where(accepted, drafted, draw(p.expand(count, -1), generator))

    def statistic(tokens: Tensor) -> float:
        expected = count * p
        return float(((tokens.bincount(minlength=7) - expected).square() / expected).sum())

    assert statistic(said) < 22.46 < 1000 < min(statistic(drafted), statistic(wrong))
    overlap = float(torch.minimum(p, q).sum())
    assert float(accepted.float().mean()) == pytest.approx(overlap, abs=0.01)  # as often as the laws have in common


def test_equal_laws_accept_everything_and_certain_ones_the_same_token():
    p = torch.randn(500, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert accept(p, p, draw(p))[1].all()
    target, other = torch.eye(9)[[2, 5, 7]], torch.eye(9)[[2, 6, 7]]
    said, accepted = accept(target, other, other.argmax(-1))
    assert said.tolist() == [2, 5, 7] and accepted.tolist() == [True, False, True]
