"""Adapters by their defaults on every kind of model: what is put where, or one error that says what would do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import zoo
from cases.names import KINDS, by_kind
from zoo.adapt import adapters_of
from zoo.adapt.method import outputs, tied_layers
from zoo.layers.adapt import placed

LANGUAGE = zoo.list_models("*_nano", task="language")
TIED_WITHIN = ("llava_nano", "adem_vl_nano")  # models of which a part has a head that is its embedding


@pytest.mark.parametrize("name", by_kind(LANGUAGE, (*KINDS, "rwkv7_nano", "bamba_nano", "qwen3_next_nano")))
def test_a_ladder_learns_or_the_error_says_what_would(name):
    """With the reduction that the error names, where it names one."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name).train()
    tensors = [(key, id(tensor), tensor.requires_grad) for key, tensor in model.state_dict(keep_vars=True).items()]
    said = ""
    try:
        zoo.adapt(model, "ladder")
    except ValueError as error:
        said = str(error)
        now = [(key, id(tensor), tensor.requires_grad) for key, tensor in model.state_dict(keep_vars=True).items()]
        assert now == tensors and not adapters_of(model) and "ladder" in said
        assert ("reduction=8" in said) is ("one after the other" not in said and "residual stream" not in said)
        for least in re.findall(r"take a reduction of (\d+)", said):
            zoo.adapt(model, "ladder", reduction=int(least))
    assert adapters_of(model) or re.search(r"take lora or paca|one after the other", said), said
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tokens = torch.randint(0, model.config.vocab_size, (2, 20))
    (model(tokens, labels=tokens) + sum(zoo.auxiliary_losses(model).values())).backward()
    assert sum(parameter.grad is not None for parameter in learns) > 0.5 * len(learns)


@pytest.mark.parametrize("name", by_kind(zoo.list_models("*_nano"), TIED_WITHIN))
def test_no_default_parts_a_head_from_its_embedding(name):
    """Of no model, nor of a part of it."""
    model, layers = zoo.create_model(name, device="meta"), []
    heads, tied = outputs(model), tied_layers(model)
    try:
        layers = list(placed(zoo.adapt(model, "paca")))
    except ValueError as error:
        assert "no layer that it can be put on" in str(error)
    assert not tied & set(layers)
    assert not any(model.get_submodule(layer) is head for layer in layers for head in heads)


@pytest.mark.parametrize("name", TIED_WITHIN)
@pytest.mark.parametrize("kind", ["lora", "paca", "pst"])
def test_a_part_with_a_tied_head(name, kind):
    model: Any = zoo.adapt(zoo.create_model(name), kind)
    assert "language.head" not in placed(model) and "language.blocks.0.mixer.q_proj" in placed(model)
    assert model.language.head.weight is model.language.embedding.weight
    with pytest.raises(ValueError, match=r"language\.head shares its weight with another layer"):
        zoo.adapt(zoo.create_model(name), kind, targets=["language.head"])


def test_a_classifier_within_another_module_makes_outputs():
    model: Any = zoo.create_model("efficientvit_nano", device="meta")
    assert model.classifier == "head.linear" and any(model.head.linear is layer for layer in outputs(model))
    with pytest.raises(ValueError, match="has no layer that it can be put on"):  # it is the only one
        zoo.adapt(model, "paca")
    assert list(placed(zoo.adapt(model, "paca", targets=("head.*",)))) == ["head.linear"]


@pytest.mark.parametrize("kind", ["lora", "dora", "paca", "pst"])
@pytest.mark.parametrize("targets", [(), ("*.mlp.*",)])
def test_of_a_masked_model_the_masks_are_named(kind, targets):
    model: Any = zoo.mask_weights(zoo.create_model("transformer_nano"), "pruned", ratio=0.6)
    keys = model.state_dict().keys()
    with pytest.raises(ValueError, match=f"is masked, rounded or noisy, and {kind} takes plain weights: .* perp"):
        zoo.adapt(model, kind, targets=targets)
    assert model.state_dict().keys() == keys
    assert placed(zoo.adapt(zoo.mask_weights(zoo.create_model("transformer_nano"), "pruned", skip=("*.mlp.*",)), kind,
                            targets=("*.mlp.w1",)))  # fmt: skip
