"""CoDe: with one model for both it is plain decoding, the large model reads the coarse maps alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.generative import Collaboration
from zoo.generative.adaptive import Past


def opened(depth: int, **options: Any) -> Any:
    torch.manual_seed(depth)
    model: Any = zoo.create_model("next_scale_nano", dtype=torch.float64, dim=32, depth=depth, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_one_model_for_both_is_plain_decoding(guidance):
    model, classes = opened(2), torch.tensor([3, 4])
    plain = model.sample(2, classes=classes, temperature=0, guidance=guidance)
    for scales in (1, 2):
        made = Collaboration(model, model, scales).sample(2, classes=classes, temperature=0, guidance=guidance)
        assert torch.equal(made, plain)


def test_coarse_maps_are_the_large_models_and_fine_ones_the_small_ones(monkeypatch):
    large, small, held = opened(3), opened(1), []
    extend = Past.extend

    def seen(past: Past, key: torch.Tensor, value: torch.Tensor) -> Any:
        found = extend(past, key, value)
        held.append((past, found[0].shape[2]))
        return found

    monkeypatch.setattr(Past, "extend", seen)
    both = Collaboration(large.train(), small, 2)
    made = both.sample(2, temperature=0)
    assert large.training and not small.training
    longest = {id(past): tokens for past, tokens in held}
    assert sorted(longest.values()) == [5, 5, 5, 21]  # three blocks of the large model, one of the small
    assert torch.equal(made[:, :, :5], large.eval().sample(2, temperature=0)[:, :, :5])
    assert torch.equal(made[:, :, 5:], small(made).argmax(-1)[:, :, 5:])
    assert both.drafted == 5 and both.keys == max(2 * 3 * 32 * 5, 2 * 32 * 21)


def test_errors():
    model = opened(1)
    for scales in (0, 3):
        with pytest.raises(ValueError, match=f"scales must be from 1 to 2.*got {scales}"):
            Collaboration(model, model, scales)
    with pytest.raises(ValueError, match="must be of the same tokens"):
        Collaboration(opened(1, bits=2), model, 1)
    with pytest.raises(ValueError, match="temperature must be at least 0 and top_k at least 1, got -1, None"):
        Collaboration(model, model, 1).sample(temperature=-1)
