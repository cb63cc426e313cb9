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
from zoo.decoding import LongSpec, ModelDraft, MultiToken, Rapid, accept, accept_one_of, add_draft_layer, draw
from zoo.decoding.tree import Guesses, candidates


def law_of_sums(sums: Tensor) -> Tensor:
    return sums.diff(prepend=torch.zeros_like(sums[:, :1]))


class Chance:
    """Every way that the draws of a program may come out, one run after another, and how likely it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(torch, "searchsorted", lambda sums, share, right: self.rows(law_of_sums(sums))[:, None])
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


def test_several_candidates_leave_the_law_as_it_is(monkeypatch):
    """All ways to draw three of four tokens one after another, as the children of a node, and to accept one of them,
    add up to the target's."""
    torch.manual_seed(0)
    p, q = torch.randn(2, 1, 4, dtype=torch.float64).softmax(-1)

    def drafted() -> int:
        tokens, law = [torch.zeros(1, dtype=torch.long)], q
        for _ in range(3):
            tokens.append(draw(law))
            law = law.scatter(1, tokens[-1][:, None], 0)
        tree = Guesses(torch.stack(tokens, 1), torch.tensor([[-1, 0, 0, 0]]), q[:, None])
        root = torch.zeros(1, dtype=torch.long)
        return int(accept_one_of(p, list(candidates(tree, root, list(tree.children(root)), p)))[0])

    found: dict[int, float] = defaultdict(float)
    for said, weight in Chance(monkeypatch).runs(drafted):
        found[said] += weight
    assert [found[token] for token in range(4)] == pytest.approx(p[0].tolist(), abs=1e-12)


def statistic(model: Any, speaker: Any, draft: Any, count: int = 3_000) -> float:
    """Of chi-squared, against the model's law, of what a speaker says after a prompt: three of three tokens."""
    prompt, source, seen = [0, 1, 1], torch.Generator().manual_seed(1), defaultdict(int)
    said = zoo.generate(speaker, torch.tensor([prompt]), 3, draft=draft, num_samples=count, generator=source)
    for row in said[:, 3:].tolist():
        seen[tuple(row)] += 1
    expected = {row: count * chance for row, chance in law_of(model, prompt, 3).items()}
    return sum((seen[row] - hoped) ** 2 / hoped for row, hoped in expected.items())


@pytest.mark.parametrize("kind", ["tree", "recurrent tree", "modules' tree", "longspec", "longspec's chain", "rapid"])
def test_a_chi_squared_test_of_whole_texts(kind):
    """26 degrees of freedom, 99.9 %: 54.05. The drafting model's own text is far beyond."""
    names = {"recurrent tree": "mamba2_nano", "modules' tree": "deepseek_mtp_nano"}
    model, other = tiny(names.get(kind, "transformer_nano"), 0, 3), tiny("transformer_nano", 5, 3)
    draft: Any = ModelDraft(other, widths=(2, 3))
    if kind == "modules' tree":
        draft = MultiToken(widths=(2, 3))
    elif kind == "rapid":
        draft = Rapid(other, length=2, confidence=0.0, budget=2, query=1, chunk=1)
    elif "longspec" in kind:
        add_draft_layer(model, window=2)
        draft = LongSpec(widths=(2, 3) if kind == "longspec" else (), length=2)
    assert statistic(model, model, draft, 1_000 if "recurrent" in kind else 3_000) < 54.05
    assert 0 < draft.counts.accepted < draft.counts.tokens
    if kind == "tree":
        assert statistic(model, other, None) > 150


def test_equal_laws_accept_everything_and_certain_ones_the_same_token():
    p = torch.randn(500, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert accept(p, p, draw(p))[1].all()
    target, other = torch.eye(9)[[2, 5, 7]], torch.eye(9)[[2, 6, 7]]
    said, accepted = accept(target, other, other.argmax(-1))
    assert said.tolist() == [2, 5, 7] and accepted.tolist() == [True, False, True]
