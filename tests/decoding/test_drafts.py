"""Drafts in ``generate``: the same text, ends, samples and log-probabilities, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import zoo
from cases.names import by_kind
from zoo.cli import main
from zoo.decoding import ModelDraft

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
MODELS = (
    "transformer_nano", "mamba2_nano", "falcon_h1_nano", "recurrent_gemma_nano", "deepseek_nano", "mor_nano",
)  # fmt: skip


def close_to(model: Any, share: float = 0.02) -> Any:
    """A copy whose weights were moved a little, which says mostly the same."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + share * torch.randn_like(parameter))
    return other


@pytest.mark.parametrize("name", by_kind(zoo.list_models("*_nano", task="language"), MODELS))
def test_the_text_is_that_of_the_model_alone(name):
    """Rows of different length, which accept differently; drafts from afar and from near."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name)
    plain = zoo.generate(model, PROMPTS, 8, temperature=0, log_probs=True)
    for other in (zoo.create_model("mamba2_nano"), close_to(model)):
        draft = ModelDraft(other, length=3)
        found = zoo.generate(model, PROMPTS, 8, temperature=0, log_probs=True, draft=draft)
        for mine, alone in zip(found.tokens, plain.tokens, strict=True):
            assert torch.equal(mine, alone)
        torch.testing.assert_close(found.log_probs, plain.log_probs, rtol=1e-4, atol=1e-4)
        assert draft.counts.tokens == 21


@pytest.fixture(scope="module")
def pair() -> Any:
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", pretrained=True)
    return model, close_to(model, 0.3)


@pytest.mark.parametrize("length", [1, 5, 40])
def test_any_length_of_drafts_and_exactly_as_many_tokens(pair, length):
    model, other = pair
    tokens = torch.tensor([[84, 104, 101, 32]])
    for count in (1, 2, 13):
        draft = ModelDraft(other, length=length)
        found = zoo.generate(model, tokens, count, temperature=0, draft=draft)
        assert torch.equal(found, zoo.generate(model, tokens, count, temperature=0))
        assert draft.counts.tokens == count - 1 and draft.counts.proposed >= draft.counts.accepted


def test_ends_penalties_samples_and_chunks_are_as_without_a_draft(pair):
    model, other = pair
    plain = zoo.generate(model, PROMPTS, 12, temperature=0)
    end = int(plain[0][6])
    options: Any
    for options in (
        {"eos_token": end}, {"repetition_penalty": 1.5}, {"presence_penalty": 2.0, "min_new_tokens": 5},
        {"num_samples": 2}, {"prefill_chunk": 2}, {"cache": zoo.cache.StreamingLLM(sink=2, recent=64)},
    ):  # fmt: skip
        expected = zoo.generate(model, PROMPTS, 12, temperature=0, **options)
        found = zoo.generate(model, PROMPTS, 12, temperature=0, draft=other, **options)
        assert all(torch.equal(*rows) for rows in zip(found, expected, strict=True)), options
    steps = list(zoo.stream(model, PROMPTS, 12, temperature=0, draft=other, eos_token=end))
    assert len(steps) == 12 and steps[-1].ended[0]


def test_a_draft_without_confidence_says_nothing(pair):
    """Then the draws are those of the model alone, one for one."""
    model, other = pair
    draft, source = ModelDraft(other, confidence=1.0), torch.Generator()
    found = zoo.generate(model, PROMPTS, 9, generator=source.manual_seed(3), draft=draft)
    expected = zoo.generate(model, PROMPTS, 9, generator=source.manual_seed(3))
    assert all(torch.equal(*rows) for rows in zip(found, expected, strict=True)) and draft.counts.proposed == 0


def test_a_model_that_drafts_for_itself_is_always_right(pair):
    draft = ModelDraft(pair[0], length=3)
    for temperature in (0, 1):
        source = torch.Generator().manual_seed(0)
        zoo.generate(pair[0], PROMPTS, 9, temperature=temperature, draft=draft, generator=source)
    assert draft.counts.accepted == draft.counts.proposed == 2 * 3 * 6


def test_models_are_left_as_they_were(pair):
    model, other = pair
    model.train()
    other.train()
    steps = zoo.stream(model, [[1, 2]], 5, draft=other)
    next(steps)
    assert not model.training and not other.training
    steps.close()
    assert model.training and other.training


def test_what_does_not_go_with_a_draft(pair):
    model, other = pair
    for draft, message in (
        (zoo.create_model("mamba2_nano", vocab_size=300), "it has 300, the model 256"),
        (torch.nn.Linear(1, 1), "a language model or one of zoo.decoding, got Linear"),
        ("mamba2_nano", "there is no draft 'mamba2_nano'"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.generate(model, PROMPTS, 3, draft=draft)
    for options in ({"num_beams": 2, "temperature": 0}, {"compile": True}, {"batch_invariant": True}):
        with pytest.raises(ValueError, match="a draft does not go with"):
            zoo.generate(model, PROMPTS, 3, draft=other, **options)
    with pytest.raises(ValueError, match="leave out state="):
        zoo.stream(model, [[1]], 3, draft=other, state=model.init_state(1))
    for options, message in (({"length": 0}, "at least 1, got 0"), ({"confidence": 2.0}, r"\[0, 1\], got 2.0")):
        with pytest.raises(ValueError, match=message):
            ModelDraft(other, **options)


def test_the_command_line_drafts_and_says_how_well(capsys):
    command = ["generate", "transformer_nano", "--prompt", "The ", "--temperature", "0", "--max-new-tokens", "20"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert main([*command, "--draft", "mamba2_nano", "--draft-length", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out == plain and "drafted tokens accepted" in shown.err and "tokens a pass" in shown.err
    assert main([*command, "--draft", "moe_nano", "--draft-widths", "2", "3"]) == 0
    assert capsys.readouterr().out == plain
    for wrong, message in (
        (["--draft", "mamba2_nan"], "mamba2_nano"), (["--draft-length", "3"], "--draft NAME"),
        (["--draft", "del", "--draft-widths", "2"], "del drafts no trees"),
        (["--draft", "longspec", "--draft-length", "2", "--draft-widths", "2"], "leave out one of them"),
    ):  # fmt: skip
        assert main([*command, *wrong]) != 0
        assert message in capsys.readouterr().err
