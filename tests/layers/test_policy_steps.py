"""Steps under a cache policy run as a program that calls the policy where it attends."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from cases.caches import POLICIES
from zoo.cache import H2O, Dense, Quantized, SnapKV, StreamingLLM
from zoo.kernels import native
from zoo.kernels.step_program import SOURCE
from zoo.layers.cache.state import CacheState
from zoo.layers.step import programmed
from zoo.layers.step.stepper import Steps

pytestmark = pytest.mark.skipif(
    native.obstacle(SOURCE, torch.device("cpu")) is not None, reason="there is no C compiler"
)
PROMPT, STEPS = 26, 6
LATENT = [case for case in POLICIES if isinstance(case.small, Dense | H2O | SnapKV | StreamingLLM)]


@lru_cache(None)
def model(name: str) -> Any:
    torch.manual_seed(0)
    sizes = {} if name == "deepseek_nano" else {"num_kv_heads": 2}
    made = zoo.create_model(name, depth=2, num_heads=4, **sizes).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def logits(name: str, cache: Any, rows: int = 2, one_by_one: bool = False) -> Tensor:
    tokens = torch.randint(0, 256, (rows, PROMPT + STEPS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), nullcontext() if one_by_one else programmed(model(name)):
        state = model(name).init_state(rows, cache=cache)
        model(name)(tokens[:, :PROMPT], state)
        return torch.cat([model(name)(tokens[:, t : t + 1], state) for t in range(PROMPT, PROMPT + STEPS)], 1)


@pytest.fixture
def runs(monkeypatch) -> list[Any]:
    """What the program of a step was asked to run."""
    found, run = [], Steps.run
    monkeypatch.setattr(Steps, "run", lambda self, *part: (found.append(part), run(self, *part))[1])
    return found


@pytest.mark.parametrize("name", ["transformer_nano", "falcon_h1_nano"])
@pytest.mark.parametrize("case", POLICIES, ids=str)
def test_a_program_calls_every_policy(case, name, runs):
    found = logits(name, case.small)
    if not case.small.prunes:  # what ends tokens between layers is run layer by layer
        assert len(runs) == STEPS * 3  # up to the attention of each layer, and to the end
    torch.testing.assert_close(found, logits(name, case.small, one_by_one=True), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", LATENT, ids=str)
def test_latent_attention_calls_its_policy(case, runs):
    found = logits("deepseek_nano", case.small)
    assert len(runs) == STEPS * 3
    torch.testing.assert_close(found, logits("deepseek_nano", case.small, one_by_one=True), atol=2e-5, rtol=2e-5)


def test_policies_of_some_layers_and_stores(runs):
    for cache, parts in (({0: SnapKV(20, 4, 3)}, 2), (Dense(store=Quantized(8)), 3)):
        runs.clear()
        found = logits("transformer_nano", cache)
        assert len(runs) == STEPS * parts
        torch.testing.assert_close(found, logits("transformer_nano", cache, one_by_one=True), atol=2e-5, rtol=2e-5)


def test_padding_and_other_precisions_are_left_to_the_layers(runs):
    own, policy = model("transformer_nano"), SnapKV(20, 4, 3)
    prompts: list[Tensor] = [torch.arange(30), torch.arange(9)]
    found = zoo.generate(own, prompts, 4, temperature=0, cache=policy)
    assert not runs
    for row, prompt in zip(found, prompts, strict=True):
        assert torch.equal(row, zoo.generate(own, [prompt], 4, temperature=0, cache=policy)[0])
    assert runs
    runs.clear()
    narrow = zoo.create_model("transformer_nano", dtype=torch.bfloat16).eval()
    zoo.generate(narrow, prompts[:1], 4, temperature=0, cache=policy)
    assert not runs


@torch.no_grad()
def test_a_policy_that_fails_has_let_no_later_layer_count_the_token(monkeypatch):
    own, token = model("falcon_h1_nano"), torch.ones(1, 1, dtype=torch.int64)
    with programmed(own):
        state = own.init_state(1, cache=SnapKV(20, 4, 3))
        for _ in range(3):
            own(token, state)
        monkeypatch.setattr(CacheState, "attend", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            own(token, state)
    assert [part.seen for part in state[-1].parts] == [3, 3]
