"""Layers that go: which are judged to change least, and that a model without them is the model without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.changes import apply
from zoo.layer_pruning import PrunedLayers, layer_importance
from zoo.quantize import Calibration

TOKENS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


def fresh(name: str = "transformer_nano", **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, dtype=torch.float64, **options).eval()


def quiet(model: Any, *blocks: int) -> Any:
    """With branches of these blocks that add nothing."""
    for index in blocks:
        for layer in (model.blocks[index].mixer.out_proj, model.blocks[index].mlp.w2):
            torch.nn.init.zeros_(layer.weight)
    return model


@torch.no_grad()
def test_importance_is_the_mean_cosine_between_input_and_output():
    model = fresh(depth=3)
    found = layer_importance(model.train(), Calibration([TOKENS[:1], TOKENS[1:]]))
    assert model.training
    x, expected = model.eval().enter(TOKENS), []
    for block in model.blocks:
        y = block(x)
        expected.append(1 - F.cosine_similarity(x, y, dim=-1).mean())
        x = y
    torch.testing.assert_close(found, torch.stack(expected))


@torch.no_grad()
def test_layers_that_add_nothing_go_first_and_nothing_changes():
    """They are no neighbours; the cache is that of the layers that are left."""
    model = quiet(fresh(depth=5), 1, 3)
    expected = model(TOKENS)
    assert zoo.prune_layers(model, 0, Calibration([TOKENS])) is model and torch.equal(model(TOKENS), expected)
    kept = [model.blocks[index] for index in (0, 2, 4)]
    zoo.prune_layers(model, 2, Calibration([TOKENS]))
    assert all(a is b for a, b in zip(model.blocks, kept, strict=True))
    assert torch.equal(model(TOKENS), expected)
    state = model.init_state(3)
    parts = [model(TOKENS[:, :15], state), model(TOKENS[:, 15:], state)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-12, rtol=0)
    assert len(state) == 3


@torch.no_grad()
def test_a_vision_language_model_is_pruned_saved_and_loaded(tmp_path):
    model, images = fresh("llava_nano"), torch.rand(1, 1, 24, 24, dtype=torch.float64)
    quiet(model.language, 1)
    tokens = torch.tensor([[0, *[255] * 37, 65, 66]])
    expected = model(images, tokens)
    zoo.prune_layers(model, 1, Calibration([(images, tokens)]))
    assert len(model.language.blocks) == 2 and torch.equal(model(images, tokens), expected)
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.float64).eval()
    assert torch.equal(again(images, tokens), expected)


def test_what_cannot_be_pruned():
    model, calibration = fresh(depth=2), Calibration([TOKENS])
    for count in (-1, 2):
        with pytest.raises(ValueError, match=rf"count must be in \[0, 2\), so that a layer stays, got {count}"):
            zoo.prune_layers(model, count, calibration)
    for layers, error in (
        ((0, 1), "all 2 were to go"),
        ((2,), r"in \[0, 2\), got \[2\]"),
        ((0, 0), "different numbers"),
    ):
        with pytest.raises(ValueError, match=error):
            apply(model, PrunedLayers(layers=layers))
    woven = zoo.add_reweaving(fresh(depth=2))
    with pytest.raises(ValueError, match="names them by their numbers, got a model with reweaving: prune it first"):
        zoo.prune_layers(woven, 1, calibration)
    for name in ("vit_nano", "mor_nano"):
        other: Any = zoo.create_model(name)
        with pytest.raises(ValueError, match="of a language model whose blocks run one after the other, got"):
            zoo.prune_layers(other, 1, calibration)
