"""LongMamba: thresholds by hand, which channels, what a filtered step does, which calls are filtered, saving."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.extend_context import clamped, thresholds
from zoo.layers import Mamba, Mamba2
from zoo.layers.ssm.steps import StepFilter, slowest, watching

NAMES = ["mamba_nano", "mamba2_nano"]
close = partial(torch.testing.assert_close, atol=1e-9, rtol=1e-9)
TRAINED = 40


def built(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, depth=2, dtype=torch.float64, **options).eval()


def tokens(length: int, rows: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (rows, length))


def test_thresholds_by_hand():
    steps = torch.tensor([[[4.0, 3.0, 2.0, 1.0]]], dtype=torch.float64)
    # twice as long: 4 3.75 3.25 2.75 2.25 1.75 1.25 1; their sums 4 7.75 11 13.75, of all it was 10
    assert thresholds(steps, 8).item() == 2.75
    assert thresholds(steps * 3, 8).item() == 3 * 2.75
    assert clamped(steps, 0.5).tolist() == [[[3.0, 3.0, 2.0, 1.0]]] and clamped(steps, 0.0) is steps


@pytest.mark.parametrize("stretch", [2, 10])
def test_what_is_kept_sums_up_to_what_it_was(stretch):
    """Of a text of the same distribution of steps, however long."""
    steps, longer = (torch.linspace(1, 0, n, dtype=torch.float64).pow(3)[None, None] for n in (4000, stretch * 4000))
    kept = longer.masked_fill(longer <= thresholds(steps, stretch * 4000), 0.0).sum()
    assert abs(kept / steps.sum() - 1) < 0.01 < longer.sum() / steps.sum() - 1


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_global_channels_alone_skip_small_steps_in_long_calls(name):
    model, texts = built(name), tokens(TRAINED, 3)
    with watching(model) as seen:
        model(texts)
    expected = model(tokens(100)), model(tokens(TRAINED + 9))
    zoo.extend_context(model, texts, lengths=(70, 100), memory=0.3)
    assert torch.equal(model(tokens(TRAINED + 9)), expected[1])  # nearer to the length trained on
    found = {}
    with watching(model) as after:
        assert not torch.equal(model(tokens(100)), expected[0])
    for key, mixer in model.named_modules():
        if isinstance(mixer, Mamba | Mamba2):
            dt, filtered = seen[key][0], after[key][0]
            kept = (slowest(mixer) * dt.sum(1)).exp().mean(0) > 0.3
            rule: Any = mixer.step_rule
            assert torch.equal(rule.threshold[1] > 0, kept) and (rule.threshold[0] <= rule.threshold[1]).all()
            close(
                rule.threshold[1][kept],
                thresholds(dt.transpose(1, 2).sort(-1, descending=True).values, 100).mean(0)[kept],
            )
            found[key] = rule(filtered)
            assert torch.equal(found[key] == 0, filtered <= rule.threshold[1])
    kept = torch.cat([mixer.step_rule.threshold[1] > 0 for mixer in model.mixers])
    assert 0 < kept.sum() < len(kept)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_skipped_step_leaves_the_memory_alone(name):
    mixer = built(name).mixers[0]
    x = torch.randn(1, 12, 128, dtype=torch.float64)
    state = mixer.init_state(1)
    mixer(x, state)
    before = state.ssm.clone()
    mixer.step_rule = StepFilter(len(mixer.A_log), 4, (12,)).double()
    mixer(x, other := mixer.init_state(1))
    close(other.ssm, before)  # thresholds of 0 filter nothing
    mixer.step_rule.threshold.fill_(1e6)
    y = mixer(x, state)
    assert torch.equal(state.ssm, before) and y.any()
    for t in range(3):
        mixer(x[:, t : t + 1], state)
    assert not torch.equal(state.ssm, before)  # single tokens are never filtered


@torch.no_grad()
def test_generation_reads_a_long_prompt_filtered_and_saves(tmp_path):
    model = zoo.extend_context(built("mamba2_nano"), tokens(TRAINED), lengths=(90,), memory=0.1)
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.float64).eval()
    prompt = tokens(90)
    assert torch.equal(again(prompt), model(prompt)) and again.mixers[0].step_rule.threshold.any()
    low = again.bfloat16()
    assert low.mixers[0].step_rule.threshold.dtype == torch.float32 and low(prompt).isfinite().all()
    with pytest.raises(ValueError, match="the context is extended already"):
        zoo.extend_context(model, tokens(TRAINED))


def test_hybrids_have_their_state_space_layers_extended():
    model: Any = zoo.create_model("jamba_nano").eval()
    zoo.extend_context(model, tokens(TRAINED), lengths=(80,), memory=0.1)
    assert any(isinstance(m, StepFilter) and m.threshold.any() for m in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (30,)}, r"lengths must grow, from more than the 40 tokens of a sequence on, got \(30,\)"),
        ({"lengths": (90, 80)}, "lengths must grow"),
        ({"lengths": ()}, "lengths must grow"),
        ({"memory": 1.0}, r"memory and clamp must be in \[0, 1\) and scale not negative, got 1.0"),
        ({"scale": -1.0}, "scale not negative"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.extend_context(zoo.create_model("mamba_nano", depth=1), tokens(TRAINED), **options)


def test_models_and_tokens_of_another_kind():
    with pytest.raises(ValueError, match="TransformerLanguageModel has no Mamba or Mamba-2 mixer"):
        zoo.extend_context(zoo.create_model("transformer_nano"), tokens(TRAINED))
    with pytest.raises(ValueError, match=r"tokens must be \(n, T\) sequences, got \(40,\)"):
        zoo.extend_context(zoo.create_model("mamba_nano", depth=1), tokens(TRAINED)[0])
