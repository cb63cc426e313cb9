"""HAMburger: segments, merging, and the loss against a slow reading step by step; its decoding; published sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.decoding import MicroSteps
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.hamburger import CompositionalEmbedder, over, segments

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return zoo.create_model("hamburger_nano", dtype=torch.float64)


def test_segments_are_those_of_the_published_rule():
    """By one sequence and token at a time; each rule decides somewhere."""
    torch.manual_seed(0)
    entropy = torch.rand(6, 60) ** 3 * 2
    expected = []
    for row in entropy.tolist():
        lengths: list[int] = []
        largest = -1.0
        for one in row:
            if lengths and lengths[-1] < 4 and (one < 0.05 or one < 0.3 * largest):
                lengths[-1] += 1
                largest = max(largest, one)
            else:
                lengths.append(1)
                largest = one
        assert {1, 2, 3, 4} == set(lengths)
        expected.append([begins for length in lengths for begins in [True] + [False] * (length - 1)])
    assert segments(entropy, 4, 0.05, 0.3).tolist() == expected


def test_the_embedder_attends_from_the_mean_and_leaves_single_tokens_alone():
    torch.manual_seed(0)
    embedder = CompositionalEmbedder(12, 3, 4).double()
    x, lengths = torch.randn(4, 4, 12, dtype=torch.float64), torch.tensor([1, 2, 4, 3])
    found = embedder(x, lengths)
    assert torch.equal(found[0], x[0, 0])
    for row, n in zip(range(1, 4), (2, 4, 3), strict=True):
        own = x[row, :n]
        placed = torch.cat([own, embedder.pos[:n]], -1)
        q, k, v = embedder.q_proj(own.mean(0)), embedder.k_proj(placed), embedder.v_proj(placed)
        heads = [(k[:, h] @ q[h] / 2).softmax(0) @ v[:, h] for h in (slice(0, 4), slice(4, 8), slice(8, 12))]
        torch.testing.assert_close(found[row], own.mean(0) + embedder.out_proj(torch.cat(heads)))


def slow_loss(model: Any, tokens: Tensor, first: Tensor) -> Tensor:
    """Of one sequence, a step read after the other from the states, as in decoding; the last step is not scored."""
    begins = [*first.nonzero()[:, 0].tolist(), len(tokens)]
    steps = [tokens[a:b] for a, b in pairwise(begins)]
    state, losses, stops = model.init_state(1), [], []
    for one in state:
        one.with_positions()
    for step, following in pairwise(steps[:-1]):
        for one in state:
            one.seen += len(step) - 1
        features = model.features(model.merged(step[None], torch.tensor([len(step)])), state)[:, -1]
        reads = torch.cat([features[:, -1:], model.micro(features, model.embed(following[None, :-1]))], 1)[0]
        losses += F.cross_entropy(model.say(reads), following, reduction="none")
        ends = torch.arange(1, len(following) + 1) == len(following)
        stops += F.binary_cross_entropy_with_logits(model.micro.stops(reads), ends.double(), reduction="none")
    assert [one.seen for one in state] == [sum(len(step) for step in steps[:-2])] * len(state)
    return torch.stack(losses).mean() + 0.5 * torch.stack(stops).mean()


def test_the_loss_in_parallel_is_that_of_reading_step_by_step(model):
    tokens = torch.randint(0, 256, (1, 24))
    entropy = torch.rand(1, 24, dtype=torch.float64) ** 3
    entropy[:, 0] = torch.inf
    first = segments(entropy, 4, 0.05, 0.3)
    expected = slow_loss(model, tokens[0], first[0])
    torch.testing.assert_close(model.step_loss(tokens, tokens, first), expected)
    several = torch.cat([tokens, torch.randint(0, 256, (1, 24))])
    alone = [model.step_loss(one[None], one[None], first) for one in several]
    torch.testing.assert_close(model.step_loss(several, several, first.repeat(2, 1)), sum(alone) / 2)


def test_training_learns_steps_and_evaluation_has_one_loss(model):
    tokens = torch.randint(0, 256, (2, 40))
    plain = model.eval()(tokens, labels=tokens)
    assert zoo.auxiliary_losses(model) == {}
    torch.testing.assert_close(model.train()(tokens, labels=tokens), plain)
    zoo.auxiliary_losses(model)["micro"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    hidden = model.forward_norm(model.forward_residual(tokens))
    assert model.segmented(hidden)[:, :10].all()  # the beginning is read token by token


def test_sure_steps_are_the_base_models_greedy_text_and_all_are_counted_in_slots(model):
    """At confidence 1; below, a step of several tokens takes one slot, and rows are as if alone."""
    model.eval()
    plain = zoo.generate(model, PROMPTS, 10, temperature=0, log_probs=True)
    found = zoo.generate(model, PROMPTS, 10, temperature=0, log_probs=True, draft=MicroSteps(confidence=1.0))
    for pair in zip(found.tokens + found.log_probs, plain.tokens + plain.log_probs, strict=True):
        torch.testing.assert_close(*pair)
    with torch.no_grad():
        model.micro.stop_head[-1].bias.fill_(-1.0)  # a step rarely ends
    draft = MicroSteps(confidence=0.5)
    together = zoo.generate(model, PROMPTS, 11, temperature=0, draft=draft)
    assert draft.counts.tokens == 33 and draft.counts.passes < 20
    for row, prompt in zip(together, PROMPTS, strict=True):
        draft = MicroSteps(confidence=0.5)
        stepping = draft.begin(model, Options(max_new_tokens=11, temperature=0))
        said = [step.tokens for step in stepping.steps(Batch(torch.tensor([prompt])))]
        assert torch.equal(torch.cat(said), row[len(prompt) :])
        (state,) = stepping.states
        assert {one.filled for one in state} == {len(prompt) + draft.counts.passes - 1}  # the last step is not read
    end = int(together[0][5])
    ended = zoo.generate(model, PROMPTS, 11, temperature=0, draft="micro_steps", eos_token=end)
    assert all(len(row) <= len(prompt) + 11 for row, prompt in zip(ended, PROMPTS, strict=True))


def test_over_any_transformer_it_says_what_that_does():
    base: Any = zoo.create_model("transformer_nano", pretrained=True)
    model = over(base, merge_heads=8, micro_depth=2, micro_features=1)
    draft = MicroSteps(confidence=1.0)
    expected = zoo.generate(base, PROMPTS, 8, temperature=0)
    found = zoo.generate(model, PROMPTS, 8, temperature=0, draft=draft)
    assert all(torch.equal(*rows) for rows in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="of the family transformer, got Mamba2LanguageModel"):
        over(zoo.create_model("mamba2_nano"))


def test_published_size():
    """Llama 3.2 1B, four more of its blocks, an attention of twice 1.5 dim, and three matrices of the stop head."""
    dim, block = 2048, 60_821_504
    base = zoo.model_info("llama3_2_1b").num_parameters
    embedder = 2 * (dim * dim + dim) + 2 * (dim * 3 * dim // 2 + dim) + 4 * dim // 2
    extra = embedder + 4 * block + 2 * (dim * dim + dim) + dim + 1
    assert zoo.model_info("hamburger_llama3_2_1b").num_parameters == base + extra
    assert zoo.create_model("hamburger_llama3_2_1b", device="meta").num_active_parameters() == base


def test_bad_input(model):
    with pytest.raises(ValueError, match="has no micro steps"):
        zoo.generate(zoo.create_model("transformer_nano"), PROMPTS, 3, draft="micro_steps")
    with pytest.raises(ValueError, match="leave out cache="):
        zoo.generate(model, PROMPTS, 3, draft="micro_steps", cache="h2o")
    for options, message in (
        ({"merge_heads": 5}, "merge_heads must divide dim"), ({"micro_features": 4}, "at most the 3 blocks, got 4"),
        ({"segment_ratio": -1.0}, "segment_ratio must not be negative"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            zoo.create_model("hamburger_nano", **options)
