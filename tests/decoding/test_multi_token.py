"""Modules of multi-token prediction as drafts: the model's text, and what the modules say of the whole text."""

from __future__ import annotations

import dataclasses
import json
from itertools import cycle
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import zoo
from zoo.checkpoints.convert import deepseek
from zoo.decoding import MultiToken
from zoo.decoding.multi_token import _MultiTokenDrafting, _MultiTokenTrees

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return zoo.create_model("deepseek_mtp_nano", mtp_depth=3, dtype=torch.float64).eval()


@pytest.mark.parametrize("prompt", [[4], [3, 1, 4, 1, 5]])
def test_every_guess_is_that_of_the_modules_on_the_whole_text(model, prompt, monkeypatch):
    """Where drafts were refused, short, or accepted in part, and after prompts shorter than the depth."""
    guesses, lengths = [], cycle([3, 1, 2, 3])

    def guess(self: Any, token: Any, plain: Any = _MultiTokenDrafting.guess) -> Any:
        logits = plain(self, token)
        guesses.append((len(self.ahead), torch.cat([self.text, *self.ahead], 1), logits))
        return logits

    monkeypatch.setattr(_MultiTokenDrafting, "guess", guess)
    monkeypatch.setattr(_MultiTokenDrafting, "most", lambda self: next(lengths))
    draft = MultiToken()
    zoo.generate(model, [prompt], 20, temperature=0.5, draft=draft, generator=torch.Generator().manual_seed(0))
    assert 0 < draft.counts.accepted < draft.counts.proposed
    for depth, text, logits in guesses:
        longer = torch.cat([text, text[:, :1]], 1)  # by a token that no guess has seen
        expected, _ = model.further_tokens(model.forward_norm(model.forward_residual(longer)), longer)[depth - 1]
        torch.testing.assert_close(logits, model.head(expected[:, -2]), rtol=1e-9, atol=1e-9)
    assert {depth for depth, *_ in guesses} == {1, 2, 3}


@pytest.mark.parametrize("prompts", [[[4]], [[3, 1, 4, 1, 5], [9], [2, 6]]])
def test_every_guess_of_a_tree_is_that_of_the_modules_on_its_branch(model, prompts, monkeypatch):
    """Of every node, in rows of different lengths, shorter ones than the modules look ahead among them."""
    guesses = []

    def guess(self: Any, tokens: Any, parent: Any, plain: Any = _MultiTokenTrees.guess) -> Any:
        logits = plain(self, tokens, parent)
        mask = torch.ones_like(self.text) if self.ids is None else self.ids + 1
        guesses.append((int(self.level[-1]), self.known, mask, self.nodes, self.parent, logits))
        return logits

    monkeypatch.setattr(_MultiTokenTrees, "guess", guess)
    draft = MultiToken(widths=(2, 3, 4))
    plain = zoo.generate(model, prompts, 8, temperature=0)
    found = zoo.generate(model, prompts, 8, temperature=0, draft=draft)
    assert all(torch.equal(*rows) for rows in zip(found, plain, strict=True))
    assert {level for level, *_ in guesses} == {1, 2}
    for level, known, mask, nodes, parent, logits in guesses:
        for row in range(len(prompts)):
            for node in range(nodes.shape[1] - logits.shape[1], nodes.shape[1]):
                above, branch = node, []
                while above >= 0:
                    branch.insert(0, int(nodes[row, above]))
                    above = int(parent[row, above])
                text = torch.cat([known[row, :-1][mask[row] > 0], known[row, -1:], torch.tensor([*branch, 0])])[None]
                states = model.forward_norm(model.forward_residual(text))
                expected, _ = model.further_tokens(states, text)[level]
                own = logits[row, node - nodes.shape[1]]
                torch.testing.assert_close(own, model.head(expected[0, -2]), rtol=1e-9, atol=1e-9)


def test_a_tree_of_several_tokens_finds_more_than_a_chain():
    """Of the bundled weights; of one module alone too."""
    model: Any = zoo.create_model("deepseek_mtp_nano", pretrained=True)
    prompts = [list(text) for text in (b"The import statement", b"class", b"If the function returns ")]
    plain = zoo.generate(model, prompts, 24, temperature=0)
    for chain, tree in ((MultiToken(), MultiToken(widths=(3, 4))), (MultiToken(length=1), MultiToken(widths=(3,)))):
        for draft in (chain, tree):
            found = zoo.generate(model, prompts, 24, temperature=0, draft=draft)
            assert all(torch.equal(*rows) for rows in zip(found, plain, strict=True))
        assert tree.counts.passes < chain.counts.passes
    drawn = [
        zoo.generate(
            model, prompts, 9, draft=MultiToken(widths=(2, 2)), generator=torch.Generator().manual_seed(0),
            num_samples=2, prefill_chunk=7,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert all(torch.equal(*rows) for rows in zip(*drawn, strict=True))


def test_the_text_is_that_of_the_model_alone_and_the_drafts_are_good():
    """Of the bundled weights, rows of different lengths and chunks of the prompts."""
    model: Any = zoo.create_model("deepseek_mtp_nano", pretrained=True)
    prompts = [list(text) for text in (b"The import statement", b"class", b"If the function returns ")]
    plain = zoo.generate(model, prompts, 24, temperature=0)
    for options in ({}, {"prefill_chunk": 7}, {"num_samples": 2}):
        draft = MultiToken()
        found = zoo.generate(model, prompts, 24, temperature=0, draft=draft, **options)
        copies = options.get("num_samples", 1)
        assert all(torch.equal(row, plain[index // copies]) for index, row in enumerate(found))
        assert draft.counts.tokens > 1.3 * draft.counts.passes
    alone = MultiToken(length=1)
    zoo.generate(model, prompts[:1], 40, temperature=0, draft=alone)
    assert alone.counts.accepted > 0.4 * alone.counts.proposed


def test_a_folder_in_the_published_layout_drafts_too(tmp_path):
    """The module lies behind the last layer, in one expert a tensor, with copies of embedding and head."""
    model: Any = zoo.create_model("deepseek_mtp_nano", mtp_depth=1)
    fields = dataclasses.asdict(model.config)
    (tmp_path / "config.json").write_text(json.dumps(deepseek.config_to_transformers(fields)))
    tensors = deepseek.to_transformers(model.state_dict(), stacked=False)
    module = {name.removeprefix("model.layers.2.") for name in tensors if name.startswith("model.layers.2.")}
    assert {
        "enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight", "shared_head.head.weight",
        "embed_tokens.weight", "self_attn.kv_b_proj.weight", "mlp.experts.7.down_proj.weight",
    } < module  # fmt: skip
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    loaded: Any = zoo.create_model(f"local-dir:{tmp_path}")
    assert loaded.config.mtp_depth == 1
    expected, found = (zoo.generate(one, PROMPTS, 8, temperature=0, draft="mtp") for one in (model, loaded))
    assert all(torch.equal(*rows) for rows in zip(found, expected, strict=True))
    for one, other in zip(model.mtp.parameters(), loaded.mtp.parameters(), strict=True):
        assert torch.equal(one, other)


def test_models_without_modules_do_not_draft():
    for name in ("deepseek_nano", "mamba2_nano"):
        with pytest.raises(ValueError, match="no modules of multi-token prediction"):
            zoo.generate(zoo.create_model(name), PROMPTS, 3, draft="mtp")
