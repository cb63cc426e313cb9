"""What options make of logits: as transformers' processors do, in its order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.generate import logits as ours
from zoo.generate.logits import Shaper, draw
from zoo.generate.options import Options
from zoo.generate.prompts import Batch

VOCAB = 50


@pytest.fixture
def logits() -> Tensor:
    torch.manual_seed(0)
    return 3 * torch.randn(6, VOCAB)


@pytest.fixture
def said() -> Tensor:
    return torch.randint(VOCAB, (6, 9), generator=torch.Generator().manual_seed(1))


def theirs(name: str, *args, **options):
    import transformers.generation.logits_process as peer

    return getattr(peer, name)(*args, **options)


@pytest.mark.parametrize(
    ("function", "value", "peer"),
    [
        *((ours.likeliest, k, "TopKLogitsWarper") for k in (1, 7, 50, 99)),
        *((ours.nucleus, p, "TopPLogitsWarper") for p in (0.01, 0.5, 0.9, 0.999)),
        *((ours.at_least, p, "MinPLogitsWarper") for p in (0.01, 0.2, 1.0)),
    ],
)
def test_what_is_left_to_draw_from(function, value, peer, logits, said):
    assert torch.equal(function(logits, value), theirs(peer, value)(said, logits.clone()))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_penalties(penalty, logits, said):
    seen = torch.zeros(6, VOCAB, dtype=torch.bool).scatter(1, said, True)
    expected = theirs("RepetitionPenaltyLogitsProcessor", penalty)(said, logits.clone())
    assert torch.equal(ours.repeated(logits, seen, penalty), expected)
    expected = logits - penalty * torch.stack([torch.bincount(row, minlength=VOCAB) > 0 for row in said]).float()
    assert torch.equal(ours.present(logits, seen, penalty), expected)


@pytest.mark.parametrize("new", [0, 1, 2, 3])
def test_all_together_as_transformers_chains_them(new, logits, said):
    options = {"repetition_penalty": 1.4, "temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.05}
    shaper = Shaper(Options(max_new_tokens=5, min_new_tokens=2, eos_token=[3, 4], **options), Batch(said), VOCAB)
    after = torch.randint(VOCAB, (6, new), generator=torch.Generator().manual_seed(2))
    for token in after.T:
        shaper.note(token)
    given, expected = torch.cat([said, after], 1), logits.clone()
    for processor in (
        theirs("RepetitionPenaltyLogitsProcessor", 1.4),
        theirs("MinNewTokensLengthLogitsProcessor", 9, 2, [3, 4], device="cpu"),
        theirs("TemperatureLogitsWarper", 0.7), theirs("TopKLogitsWarper", 30), theirs("TopPLogitsWarper", 0.9),
        theirs("MinPLogitsWarper", 0.05),
    ):  # fmt: skip
        expected = processor(given, expected)
    draws = draw(expected.softmax(-1), torch.Generator().manual_seed(3))
    shaper.options = Options(**{**vars(shaper.options), "generator": torch.Generator().manual_seed(3)})
    assert torch.equal(shaper.drawn(logits), draws)
    torch.testing.assert_close(shaper.shaped(logits).softmax(-1), expected.softmax(-1))


def test_draws_have_the_law_and_what_has_no_probability_is_never_drawn():
    law = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    often = torch.bincount(draw(law.expand(20_000, -1) * 7, torch.Generator().manual_seed(0)), minlength=6) / 20_000
    assert often[law == 0].sum() == 0
    assert (often - law).abs().max() < 0.015  # four standard deviations


@pytest.mark.parametrize("share", [0.0, 1 - 2.0**-53])
def test_the_first_and_the_last_share_draw_what_has_a_probability(share, monkeypatch):
    weight = torch.rand(500, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e-3
    weight[:, [0, 4, 8]] = 0
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, share, dtype=torch.float64))
    assert torch.equal(draw(weight), torch.full((500,), 7 if share else 1))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 0.0])
def test_what_is_no_law_is_not_drawn_from(wrong):
    with pytest.raises(ValueError, match=r"must sum to a positive number, got \[1.0, (nan|inf|0.0)\]"):
        draw(torch.tensor([[0.5, 0.5], [0.0, wrong]]))


def test_padding_was_not_said(logits):
    tokens, mask = torch.tensor([[0, 0, 7, 8]] * 6), torch.tensor([[0, 0, 1, 1]] * 6).bool()
    shaper = Shaper(Options(max_new_tokens=1), Batch(tokens, mask), VOCAB)
    assert shaper.seen.sum(1).tolist() == [2] * 6 and not shaper.new.any()
