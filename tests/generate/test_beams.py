"""Beam search: the continuations and scores of transformers' on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Any, Any]:
    """A small random Mixtral on both sides."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=37, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=64, initializer_range=0.6,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, sliding_window=None,
    )  # fmt: skip
    theirs = MixtralForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("mixtral")
    theirs.save_pretrained(folder)
    return zoo.create_model(f"local-dir:{folder}"), theirs


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        ({"num_beams": 2}, {}),
        ({"num_beams": 4, "num_samples": 4}, {}),
        ({"num_beams": 4, "num_samples": 3, "eos_token": [3, 11]}, {}),
        ({"num_beams": 3, "eos_token": list(range(0, 37, 3)), "length_penalty": 2.0}, {}),
        ({"num_beams": 3, "eos_token": list(range(0, 37, 3)), "length_penalty": -1.0, "num_samples": 2}, {}),
        ({"num_beams": 3, "eos_token": list(range(0, 37, 2)), "min_new_tokens": 4}, {}),
        ({"num_beams": 4, "eos_token": 5, "repetition_penalty": 1.5}, {}),
    ],
)  # fmt: skip
def test_beams_are_those_of_transformers(pair, options, peer):
    ours, theirs = pair
    tokens = torch.randint(37, (3, 5), generator=torch.Generator().manual_seed(0))
    names = {"eos_token": "eos_token_id", "num_samples": "num_return_sequences"}
    expected = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=10, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True,
        **{names.get(name, name): value for name, value in options.items()},
    )  # fmt: skip
    found, log_probs = zoo.generate(ours, tokens, 10, temperature=0, log_probs=True, **options)  # type: ignore[misc]
    ends = options.get("eos_token", [])
    for mine, other in zip(found[:, 5:].tolist(), expected.sequences[:, 5:].tolist(), strict=True):
        length = next((n for n, one in enumerate(other, 1) if one in ([ends] if isinstance(ends, int) else ends)), 10)
        assert mine[:length] == other[:length] and all(one == mine[length] for one in mine[length:])
    if "repetition_penalty" not in options:  # log_probs are the model's own
        lengths = (log_probs != 0).sum(1)
        scores = log_probs.sum(1) / lengths ** options.get("length_penalty", 1.0)
        torch.testing.assert_close(scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)


def test_beams_of_prompts_of_different_lengths(pair):
    ours, _ = pair
    prompts = [[1, 2, 3, 4, 5, 6], [7], [8, 9]]
    together = zoo.generate(ours, prompts, 6, temperature=0, num_beams=3, eos_token=[3])
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = zoo.generate(ours, [prompt], 6, temperature=0, num_beams=3, eos_token=[3])
        assert torch.equal(found, alone)


def test_one_beam_wide_is_greedy_and_more_are_likelier(pair):
    ours, _ = pair
    tokens = torch.randint(37, (4, 3), generator=torch.Generator().manual_seed(1))
    _, greedy = zoo.generate(ours, tokens, 8, temperature=0, log_probs=True)  # type: ignore[misc]
    _, beams = zoo.generate(ours, tokens, 8, temperature=0, num_beams=30, log_probs=True)  # type: ignore[misc]
    assert (beams.sum(1) >= greedy.sum(1) - 1e-4).all() and (beams.sum(1) > greedy.sum(1) + 0.1).any()
