"""SpecKV: a guess is read and forgotten, and what it attends to stays; by hand, with full matrices."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.cache import SpecKV
from zoo.generate.decode import prefilled
from zoo.generate.options import Options
from zoo.generate.prompts import Batch

PROMPT, AHEAD, BUDGET, WINDOW, KERNEL = 24, 12, 8, 2, 3


def models(name: str = "transformer_nano") -> tuple[Any, Any]:
    torch.manual_seed(0)
    return zoo.create_model(name, dtype=torch.float64).eval(), zoo.create_model("mamba2_nano").eval()


def prompt(rows: int = 1) -> Tensor:
    return torch.randint(1, 256, (rows, PROMPT), generator=torch.Generator().manual_seed(3))


def policy(draft: Any) -> SpecKV:
    return SpecKV(budget=BUDGET, window=WINDOW, kernel=KERNEL, ahead=AHEAD, draft=draft)


def kept_by_hand(model: Any, tokens: Tensor) -> set[int]:
    """Positions that the first key-value head of the first block keeps of a prompt followed by a guess."""
    block = model.blocks[0]
    mixer, x = block.mixer, block.norm(model.embedding(tokens))
    q, k = (proj(x)[0].unflatten(-1, (-1, mixer.head_dim)) for proj in (mixer.q_proj, mixer.k_proj))
    q, k = (one[0] for one in mixer.rotary(torch.arange(tokens.shape[1]), q[None], k[None]))
    group = mixer.num_heads // mixer.num_kv_heads
    scores = torch.zeros(PROMPT, dtype=torch.float64)
    for head in range(group):
        for t in range(PROMPT - WINDOW, tokens.shape[1]):
            weights = (k[: t + 1, 0] @ q[t, head] / mixer.head_dim**0.5).softmax(-1)
            weights = F.pad(weights[:PROMPT], (0, max(0, PROMPT - t - 1)))
            scores = torch.maximum(scores, weights)
    near = F.pad(scores, (1, 1)).unfold(0, KERNEL, 1).amax(-1)
    ranked = sorted(range(PROMPT - WINDOW), key=lambda s: (-float(near[s]), -float(scores[s])))
    return {*ranked[: BUDGET - WINDOW], *range(PROMPT - WINDOW, PROMPT)}


@torch.no_grad()
def test_what_the_guess_attends_to_stays():
    model, draft = models()
    model.blocks[0].mixer.q_proj.weight.mul_(20)  # so that tokens differ in what they are given
    state = model.init_state(1, cache=policy(draft))
    guess = zoo.generate(draft, prompt(), AHEAD, temperature=0)
    model(prompt(), state)
    assert state[0].filled == PROMPT  # by hand nothing goes
    state = model.init_state(1, cache=policy(draft))
    list(zoo.stream(model, prompt(), 1, temperature=0, state=state))
    assert {state[0].filled, state[0].seen} == {BUDGET, PROMPT}
    assert set(state[0].position[0, 0].tolist()) == kept_by_hand(model, guess)
    alone = model.init_state(1, cache=policy(None))
    model(prompt(), alone)
    assert set(alone[0].position[0, 0].tolist()) == kept_by_hand(model, prompt())
    assert kept_by_hand(model, prompt()) != kept_by_hand(model, guess)


@torch.no_grad()
@pytest.mark.parametrize(("chunk", "ahead"), [(10, AHEAD), (23, AHEAD), (1 + PROMPT // 2, 1)])
def test_a_prompt_in_chunks_keeps_the_same_tokens(chunk, ahead):
    """The window goes over the border of chunks, and a last chunk or a guess may be one token."""
    model, draft = models()
    model.blocks[0].mixer.q_proj.weight.mul_(20)
    mask = torch.ones(2, PROMPT, dtype=torch.bool)
    mask[1, :3] = False
    cache, found = SpecKV(BUDGET, 4, KERNEL, ahead=ahead, draft=draft), []
    options = Options(max_new_tokens=1, temperature=0.0, cache=cache)
    for size in (None, chunk):
        _, state = prefilled(model, Batch(prompt(2), mask), dataclasses.replace(options, prefill_chunk=size), 1)
        assert state[0].filled == BUDGET and not state[0].notes
        found.append([part.position.sort(-1).values for part in state])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["transformer_nano", "falcon_h1_nano"])
def test_the_guess_leaves_no_trace(name):
    """With room for the prompt the text is that of the plain model, recurrent parts and padded rows included."""
    model, draft = models(name)
    mask = torch.ones(2, PROMPT, dtype=torch.bool)
    mask[1, :7] = False
    ample = SpecKV(budget=100, window=WINDOW, ahead=AHEAD, draft=draft)
    options = {"temperature": 0, "attention_mask": mask, "log_probs": True}
    found, expected = (zoo.generate(model, prompt(2), 12, cache=cache, **options) for cache in (ample, None))
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-12, rtol=0)


def test_wrong_drafts_say_so():
    model, _ = models()
    with pytest.raises(ValueError, match="SpecKV's draft must know the model's 256 tokens, got one of 300"):
        zoo.generate(model, prompt(), 2, cache=policy(zoo.create_model("transformer_nano", vocab_size=300)))
    with pytest.raises(ValueError, match="leave out batch_invariant"):
        zoo.generate(model, prompt(), 2, cache=policy(model), batch_invariant=True)
    with pytest.raises(ValueError, match="ahead must be"):
        SpecKV(ahead=0)
