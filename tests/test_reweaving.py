"""Reweaving: nothing changes at strength zero or with nothing kept; what is kept, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.layers.memory import ContextReweaving

CHUNK = 8
TOKENS = torch.randint(0, 256, (2, 3 * CHUNK), generator=torch.Generator().manual_seed(0))


def woven(strength: float = 0.0, **options: Any) -> Any:
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=3, dtype=torch.float64).eval()
    zoo.add_reweaving(model, captured=(0, 2), woven=1, **options)
    for parameter in model.reweaving.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.constant_(model.reweaving.gate, strength)
    return model


def read(model: Any, tokens: torch.Tensor = TOKENS, **options: Any) -> torch.Tensor:
    text = zoo.Rewoven(model)
    return torch.cat([text.read(chunk, **options) for chunk in tokens.split(CHUNK, 1)], 1)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"strength": 0.0}, {"strength": 0.7, "keep": 0}], ids=["strength 0", "none kept"])
def test_nothing_woven_is_the_plain_model_bit_for_bit(options):
    model = woven(**options)
    plain = torch.cat([model(chunk) for chunk in TOKENS.split(CHUNK, 1)], 1)
    assert torch.equal(read(model), plain)
    woven_state, state = model.init_state(2), model.init_state(2)
    plain = torch.cat([model(chunk, state) for chunk in TOKENS.split(CHUNK, 1)], 1)
    assert torch.equal(read(model, state=woven_state), plain)


@torch.no_grad()
@pytest.mark.parametrize("keep", [3 * CHUNK, 5])
def test_against_equations(keep):
    """With room for all, and for five; chunk by chunk, written out."""
    model = woven(0.7, keep=keep)
    layer: Any = model.reweaving
    found, shares = read(model), layer.shares.softmax(0)
    past = torch.zeros(2, 0, 2, model.config.dim, dtype=torch.float64)
    for number, chunk in enumerate(TOKENS.split(CHUNK, 1)):
        first = model.blocks[0](model.enter(chunk))
        h = model.blocks[1](first)
        if number:
            rows = []
            for token in past.flatten(0, 1):  # (captured, dim)
                parts = list(zip(shares, layer.scores, layer.maps, token, strict=True))
                relevance = sum(share * (state @ score.weight[0]).sigmoid() for share, score, _, state in parts)
                rows.append(relevance * sum(share * mapped.weight @ state for share, _, mapped, state in parts))
            vectors = torch.stack(rows).unflatten(0, past.shape[:2])
            h = h + torch.tensor(0.7).double().tanh() * layer.attention(h, vectors, vectors)
        last = model.blocks[2](h)
        torch.testing.assert_close(found[:, number * CHUNK : (number + 1) * CHUNK], model.read_out(last))
        past = torch.cat([past, torch.stack([first, last], 2)], 1)
        rank = layer.relevance(past).argsort(1, descending=True)[:, :keep].sort(1).values
        past = past.take_along_dim(rank[..., None, None], 1)
    assert not torch.allclose(found[:, CHUNK:], read(woven(), TOKENS)[:, CHUNK:])


@torch.no_grad()
def test_memory_does_not_grow_and_no_later_token_is_seen():
    model = woven(0.7, keep=5)
    text, sizes = zoo.Rewoven(model), []
    for chunk in TOKENS.split(CHUNK, 1):
        text.read(chunk)
        assert text.memory is not None
        sizes.append(text.memory.nbytes)
    assert sizes == [2 * 5 * 2 * model.config.dim * 8] * 3
    other = TOKENS.clone()
    other[:, -3:] = 7
    assert torch.equal(read(model, other)[:, :-3], read(model)[:, :-3])


def test_scores_and_maps_learn_and_are_saved(tmp_path):
    model = woven(0.7, keep=5)
    text = zoo.Rewoven(model)
    torch.stack([text.read(chunk, labels=chunk) for chunk in TOKENS.split(CHUNK, 1)]).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.reweaving.parameters() if p.dim() > 1)
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.float64).eval()
    with torch.no_grad():
        assert torch.equal(read(again), read(model))


def test_what_cannot_be_woven():
    model = woven()
    text = zoo.Rewoven(model)
    text.read(TOKENS)
    with pytest.raises(ValueError, match="the memory is of 2 texts, the chunk of 1"):
        text.read(TOKENS[:1])
    with pytest.raises(ValueError, match="has a reweaving already"):
        zoo.add_reweaving(model)
    bare: Any = zoo.create_model("transformer_nano", depth=2)
    with pytest.raises(ValueError, match="the model has no reweaving"):
        zoo.Rewoven(bare)
    for options in ({"captured": ()}, {"captured": (2,)}, {"woven": -1}):
        with pytest.raises(ValueError, match=r"numbers of blocks in \[0, 2\), one captured at least"):
            zoo.add_reweaving(bare, **options)
    vision: Any = zoo.create_model("vit_nano")
    with pytest.raises(ValueError, match="reweaving takes a language model"):
        zoo.add_reweaving(vision)
    with pytest.raises(ValueError, match="keep must be at least 0, got -1"):
        ContextReweaving(16, keep=-1)
    layer = ContextReweaving(16, captured=2)
    with pytest.raises(ValueError, match="the states of 2 layers are kept, got those of 1"):
        layer.remember(None, [torch.zeros(1, 1, 16)])
