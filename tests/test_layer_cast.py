"""LayerCast: the float32 model of the rounded weights, bit for bit, in fewer bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.layers.quant import compressible

NAMES = ["transformer_nano", "mamba2_nano", "falcon_h1_nano", "moe_nano", "deepseek_nano", "rwkv7_nano", "vit_nano"]


def inputs(model: Any) -> torch.Tensor:
    if hasattr(model.config, "vocab_size"):
        return torch.arange(38).reshape(2, 19)
    return torch.randn(2, model.config.in_chans, *model.config.image_shape)


def rounded(name: str) -> Any:
    """The model whose weights are narrow numbers in float32."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name).eval()
    with torch.no_grad():
        for weight in compressible(model).values():
            weight.copy_(weight.bfloat16())
    return model


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_rounded_weights(name, tmp_path):
    expected, model = rounded(name), rounded(name)
    assert zoo.layer_cast(model) is model
    x = inputs(model)
    assert torch.equal(model(x), expected(x))
    kept = {id(p): p.nbytes for p in model.parameters()}
    narrow = {id(weight): weight.nbytes for weight in compressible(expected).values()}
    assert sum(kept.values()) == sum(p.nbytes for p in expected.parameters()) - sum(narrow.values()) // 2
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert torch.equal(again(x), expected(x))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16, torch.float32}


def test_generation_and_gradients():
    expected, model = rounded("transformer_nano"), zoo.layer_cast(rounded("transformer_nano"))
    tokens = inputs(model)
    ours, theirs = (zoo.generate(m, tokens, 8, temperature=0, log_probs=True) for m in (model, expected))
    assert torch.equal(ours.tokens, theirs.tokens)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-6, rtol=0)  # other products of one row
    model(tokens, labels=tokens).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.head.parametrizations.weight.original is model.embedding.weight


@pytest.mark.parametrize(
    ("prepare", "dtype", "message"),
    [
        (lambda model: model, "float8_e4m3fn", "weights are kept in bfloat16 or float16, got 'float8_e4m3fn'"),
        (nn.Module.bfloat16, "bfloat16", "layer_cast takes a model in float32, got .*bfloat16"),
        (zoo.layer_cast, "bfloat16", "sixteen bits already"),
        (zoo.quantize, "bfloat16", "layer_cast comes before zoo.factorize and zoo.quantize"),
    ],
)
def test_what_cannot_be_cast(prepare, dtype, message):
    model = prepare(zoo.create_model("transformer_nano"))
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        zoo.layer_cast(model, dtype)
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == before
