"""Continuing prompts: streams, lists, samples, ends, log-probabilities, states; everything but the arithmetic."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import zoo
from zoo.text import ByteTokenizer

LANGUAGE = zoo.list_models("*_nano", task="language")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.create_model("mamba2_nano", pretrained=True)


def greedy(model: Any, prompts: Any, count: int = 12, **options: Any) -> Any:
    return zoo.generate(model, prompts, count, temperature=0, **options)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_list_of_prompts_is_each_of_them_alone(name):
    """Bit for bit where that is asked for, and to within rounding where it is not."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name)
    together, exact = (greedy(model, PROMPTS, 6, log_probs=True, batch_invariant=exact) for exact in (False, True))
    for row, prompt in enumerate(PROMPTS):
        tokens, chances = (one[0] for one in greedy(model, torch.tensor([prompt]), 6, log_probs=True))
        assert torch.equal(together.tokens[row], tokens) and torch.equal(exact.tokens[row], tokens)
        torch.testing.assert_close(together.log_probs[row], chances, rtol=1e-4, atol=1e-4)
        assert torch.equal(exact.log_probs[row], chances)


def test_a_stream_gives_what_generate_returns(model):
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    steps = list(zoo.stream(model, tokens, 9, temperature=0))
    assert torch.equal(torch.stack([step.tokens for step in steps], 1), greedy(model, tokens, 9)[:, 3:])
    assert not any(step.ended.any() for step in steps) and len(steps) == 9
    end = int(steps[2].tokens[0])
    ending = list(zoo.stream(model, tokens, 9, temperature=0, eos_token=end))
    for before, after in pairwise(ending):
        over = before.ended
        assert (after.tokens[over] == end).all() and (after.log_probs[over] == 0).all() and over.le(after.ended).all()
    assert ending[2].ended[0]
    first = next(iter(zoo.stream(model, [[1, 2, 3]], 9, temperature=0)))
    assert first.tokens.tolist() == steps[0].tokens[:1].tolist()


def test_streams_leave_the_model_as_it_was():
    model: Any = zoo.create_model("mamba_nano").train()
    steps = zoo.stream(model, [[1, 2]], 5)
    assert model.training
    next(steps)
    assert not model.training and torch.is_grad_enabled()
    steps.close()  # type: ignore[attr-defined]
    assert model.training


def test_log_probs_are_the_models_own(model):
    tokens = torch.randint(256, (3, 7), generator=torch.Generator().manual_seed(0))
    found, log_probs = zoo.generate(model, tokens, 10, top_k=5, temperature=0.7, log_probs=True)  # type: ignore[misc]
    expected = model(found[:, :-1])[:, 6:].log_softmax(-1).gather(2, found[:, 7:, None])[..., 0]
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)


def test_samples_side_by_side_from_one_pass_over_the_prompt(model):
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    seen: list[int] = []
    hook = model.embedding.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].numel()))
    found = zoo.generate(model, tokens, 8, num_samples=3, generator=torch.Generator().manual_seed(0))
    hook.remove()
    assert found.shape == (6, 11) and torch.equal(found[:, :3], tokens.repeat_interleave(3, 0))
    assert seen == [6] + [6] * 7 and len({tuple(row) for row in found.tolist()}) == 6
    one = greedy(model, tokens, 8, num_samples=3)
    assert torch.equal(one, greedy(model, tokens, 8).repeat_interleave(3, 0))


def test_every_end_ends_a_row(model):
    plain = greedy(model, PROMPTS, 12)
    said = [row[len(prompt) :].tolist() for prompt, row in zip(PROMPTS, plain, strict=True)]
    ends = [said[0][2], said[2][5]]
    expected = [next((n for n, token in enumerate(row, 1) if token in ends), 12) for row in said]
    found, log_probs = greedy(model, PROMPTS, 12, eos_token=ends, log_probs=True)
    assert [len(chances) for chances in log_probs] == expected
    for prompt, row, full, count in zip(PROMPTS, found, plain, expected, strict=True):
        assert torch.equal(row, full[: len(prompt) + count])
    later = greedy(model, PROMPTS, 12, eos_token=ends, min_new_tokens=7)
    assert all(len(row) >= len(prompt) + 7 for prompt, row in zip(PROMPTS, later, strict=True))


def test_stop_strings_end_rows_in_the_middle_of_tokens(model):
    tokenizer = ByteTokenizer()
    tokens = torch.tensor([tokenizer.encode("The import"), tokenizer.encode("class Obje")])
    plain = greedy(model, tokens, 40)
    first, second = (tokenizer.decode(row[11:]) for row in plain)
    stop = first[5:8]
    found = greedy(model, tokens, 40, stop=["\0never", stop], tokenizer=tokenizer)
    ended = first.index(stop) + 3
    assert torch.equal(found[0, : 11 + ended], plain[0, : 11 + ended]) and not found[0, 11 + ended :].any()
    if stop not in second:
        assert torch.equal(found[1], plain[1])


def test_a_state_goes_on_where_it_was(model):
    tokens = torch.randint(256, (1, 9), generator=torch.Generator().manual_seed(0))
    whole = greedy(model, tokens, 10)
    state = model.init_state(1)
    model.eval()(tokens[:, :6], state)
    steps = [int(step.tokens) for step in zoo.stream(model, tokens[:, 6:], 4, temperature=0, state=state)]
    steps += [int(step.tokens) for step in zoo.stream(model, [steps[-1:]], 6, temperature=0, state=state)]
    assert steps == whole[0, 9:].tolist()


def test_a_prompt_longer_than_the_state_is_one_error():
    model: Any = zoo.create_model("transformer_nano")
    state = model.init_state(1, max_length=10)
    model.eval()(torch.tensor([[1, 2, 3]]), state)
    message = r"room for 7 more tokens; the prompt has 6 and 3 may follow: give init_state a larger max_length"
    with pytest.raises(ValueError, match=message):
        zoo.stream(model, [[1] * 6], 3, state=state)
    assert len(list(zoo.stream(model, [[1] * 6], 2, state=state))) == 2
    assert model.init_state(1).room is None and zoo.create_model("mamba_nano").init_state(1, 3).room is None  # type: ignore[union-attr]


def test_a_compiled_step_says_the_same(monkeypatch):
    model: Any = zoo.create_model("mamba2_nano", depth=1)
    compiled: list[Any] = []

    def compile(module: Any) -> Any:
        compiled.append(module)
        return lambda *args: module(*args)

    monkeypatch.setattr(torch, "compile", compile)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(greedy(model, tokens, 6, compile=True), greedy(model, tokens, 6)) and compiled == [model]


def test_penalties_change_what_is_said(model):
    tokens = torch.tensor([[65] * 20])
    again = {name: greedy(model, tokens, 40, **{name: 5.0}) for name in ("repetition_penalty", "presence_penalty")}
    plain = greedy(model, tokens, 40)[0, 20:].unique().numel()
    assert all(found[0, 20:].unique().numel() > plain for found in again.values())
    assert 65 not in again["repetition_penalty"][0, 20:30]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_p": 0.0}, r"min_p must be in \(0, 1\], got 0.0"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0, got -1"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_beams": True}, "num_beams must be an integer, got True"),
        ({"num_beams": 2}, "beams are searched, not drawn: num_beams=2 goes with temperature=0, got 1.0"),
        ({"num_beams": 2, "temperature": 0, "num_samples": 3}, "of 2 beams at most as many are samples"),
        ({"num_beams": 2, "temperature": 0, "stop": "x", "tokenizer": ByteTokenizer()}, "do not go with beams"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"presence_penalty": float("nan")}, "presence_penalty must be finite, got nan"),
        ({"eos_token": [3, 256]}, r"eos_token must be in \[0, vocab_size = 256\), got 256"),
        ({"eos_token": "3"}, "eos_token must be an integer or several, got '3'"),
        ({"stop": "x"}, "stop strings need the model's tokenizer=, got stop='x' without one"),
        ({"stop": [""], "tokenizer": ByteTokenizer()}, "at least one character"),
        ({"attention_mask": torch.ones(1, 2)}, "a list of them says itself how long they are"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.generate(zoo.create_model("mamba_nano", depth=1), [[1, 2]], 3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []], [[[1]]], [[1.5]]])
def test_prompts_that_are_none(prompts):
    with pytest.raises(ValueError, match="a list of prompts must hold at least one"):
        zoo.generate(zoo.create_model("mamba_nano", depth=1), prompts, 3)  # type: ignore[arg-type]


def test_an_unknown_option_names_the_nearest():
    model: Any = zoo.create_model("mamba_nano", depth=1)
    with pytest.raises(TypeError, match=r"no option 'top_n', did you mean 'top_"):
        zoo.generate(model, [[1]], 3, top_n=3)
    with pytest.raises(ValueError, match="a stream has no beams"):
        zoo.stream(model, [[1]], 3, num_beams=2, temperature=0)
    with pytest.raises(ValueError, match=r"bytes has a tokenizer of 256 tokens and the model knows 1,000"):
        zoo.generate(zoo.create_model("mamba_nano", depth=1, vocab_size=1000), [[1]], 3, tokenizer=ByteTokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (3,), (1, 2, 3)])
def test_a_tensor_of_prompts_has_rows_and_tokens(model, shape):
    with pytest.raises(ValueError, match=r"must have the shape \(batch, length\)"):
        zoo.generate(model, torch.zeros(shape, dtype=torch.long), 3)
