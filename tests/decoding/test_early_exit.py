"""A model that drafts by its own first blocks: the same text, shared states, and the choice of the exit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.decoding import DynamicExit, EarlyExit, tokens_per_block
from zoo.decoding.early_exit import _DynamicDrafting
from zoo.generate.options import Options

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "falcon_h1_nano", "recurrent_gemma_nano"])
def test_the_text_is_that_of_the_whole_model(name):
    torch.manual_seed(0)
    model: Any = zoo.create_model(name)
    plain = zoo.generate(model, PROMPTS, 9, temperature=0)
    for draft in (EarlyExit(exit=1, length=3), "early_exit", DynamicExit(length=3, prior=0.9, memory=0.99)):
        found = zoo.generate(model, PROMPTS, 9, temperature=0, draft=draft)
        assert all(torch.equal(*rows) for rows in zip(found, plain, strict=True))


def with_idle_blocks(first: int) -> Any:
    """Of four blocks those from ``first`` on leave the residual stream as it is."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=4)
    with torch.no_grad():
        for block in model.blocks[first:]:
            block.mixer.out_proj.weight.zero_()
            block.mlp.w2.weight.zero_()
    return model


def test_an_exit_that_knows_everything_is_always_right_and_no_block_reads_twice():
    model = with_idle_blocks(1)
    draft = EarlyExit(exit=1, length=3)
    zoo.generate(model, [[1, 2, 3]], 13, temperature=0, draft=draft)
    counts = draft.counts
    assert (counts.proposed, counts.accepted, counts.passes, counts.tokens) == (9, 9, 3, 12)
    assert counts.blocks == 3 * (3 + 1 + 3)  # a round: three guesses of a block, the last token, and three blocks


def test_the_choice_goes_to_the_exit_that_is_right_and_to_plain_decoding_where_none_is():
    model, draft = with_idle_blocks(2), DynamicExit(length=4)
    begun: Any = draft.begin(model, Options(max_new_tokens=1))
    for rates, choice in (((0.05, 1, 1), (2, 4)), ((0.9, 1, 1), (1, 4)), ((0.5, 0.5, 0.6), (1, 1))):
        begun.rates = dict(zip((1, 2, 3), rates, strict=True))
        assert (begun.most(), begun.exit) == choice[::-1]
    begun.rates = dict.fromkeys(begun.rates, 0.0)
    assert begun.most() == 0


def test_it_learns_which_exit_is_right(monkeypatch):
    """Behind two of four blocks nothing is added, behind one something is."""
    model, chosen = with_idle_blocks(2), []
    with torch.no_grad():
        model.blocks[1].mlp.w2.weight.mul_(300)

    def most(self: Any, plain: Any = _DynamicDrafting.most) -> int:
        length = plain(self)
        chosen.append((self.exit, length, dict(self.rates)))
        return length

    monkeypatch.setattr(_DynamicDrafting, "most", most)
    draft = DynamicExit(length=4, memory=0.5)
    zoo.generate(model, [[1, 2, 3]], 25, temperature=0, draft=draft)
    exit, length, rates = chosen[-1]
    assert rates[2] > 0.99 and rates[3] > 0.99 and rates[1] < 0.9 and (exit, length) == (2, 4)
    assert chosen[0][0] == 1 and draft.counts.blocks < 4 * draft.counts.tokens


def test_tokens_per_block_is_that_of_the_paper():
    assert tokens_per_block(0.0, 3, 0, 8) == 1 / 8 == tokens_per_block(0.7, 5, 0, 8)
    assert tokens_per_block(0.0, 3, 2, 8) == 1 / 14 < 1 / 8
    assert tokens_per_block(0.5, 2, 3, 8) == pytest.approx((1 - 0.5**4) / (1 - 0.5) / (3 * 2 + 8))
    assert tokens_per_block(1.0, 2, 3, 8) == 4 / 14


def test_what_has_no_early_exit_to_draft_by():
    model: Any = zoo.create_model("transformer_nano", depth=2)
    for bad, draft, options, message in (
        (zoo.create_model("mor_nano"), "del", {}, "are not run one after the other"),
        (model, EarlyExit(exit=2), {}, r"behind at least one of the 2 blocks and before the last: got \(2,\)"),
        (model, DynamicExit(exits=(0, 1)), {}, r"got \(0, 1\)"),
        (model, "early_exit", {"cache": "h2o"}, "leave out cache="),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.generate(bad, PROMPTS, 3, draft=draft, **options)
    with pytest.raises(ValueError, match=r"prior must be in \[0, 1\], got 2"):
        DynamicExit(prior=2)
