"""Prepacked prompts: outputs of each alone, rows without overlap, and the tokens computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo

LENGTHS = (3, 17, 1, 9, 8, 16, 2, 5)


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (length,), generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "falcon_h1_nano", "deepseek_nano", "rwkv7_nano"])
@pytest.mark.parametrize("capacity", [None, 40])
def test_outputs_are_those_of_each_prompt_alone(name, capacity):
    model: Any = zoo.create_model(name, dtype=torch.float64).eval()
    packed = zoo.prepack(prompts(), capacity)
    logits = packed.unpack(model(packed.tokens, seq_idx=packed.seq_idx))
    for prompt, found in zip(prompts(), logits, strict=True):
        torch.testing.assert_close(found, model(prompt[None])[0], atol=1e-9, rtol=1e-9)


def test_rows_are_full_and_hold_every_token_once():
    packed = zoo.prepack(prompts())
    assert packed.tokens.shape == (4, 17)  # 61 tokens, where padding computes 136
    assert (packed.seq_idx >= 0).sum() == sum(LENGTHS)
    for prompt, found, ids in zip(prompts(), *map(packed.unpack, (packed.tokens, packed.seq_idx)), strict=True):
        assert torch.equal(found, prompt) and len(ids.unique()) == 1
    for row in packed.seq_idx:
        kept = row[row >= 0]
        assert torch.equal(kept, row[: len(kept)]) and torch.equal(kept, kept.sort().values)
    assert zoo.prepack([[1, 2], [3]], 3).tokens.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("given", "capacity", "message"),
    [
        ([], None, "prompts must be at least one"),
        ([[1], []], None, r"at least one token, got shapes \[\(1,\), \(0,\)\]"),
        ([[1, 2, 3]], 2, "capacity must be at least the longest prompt's 3 tokens, got 2"),
    ],
)
def test_what_cannot_be_packed(given, capacity, message):
    with pytest.raises(ValueError, match=message):
        zoo.prepack(given, capacity)
