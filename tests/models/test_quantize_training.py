"""Training a compressed model as if its records learnt is one error, and what is meant to learn beside them does."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.layers.quant import FrozenError, records

MESSAGE = "other weights are compressed, and frozen: train the float model before zoo.quantize, adapt this one"
X = torch.arange(32).view(2, 16)


def compressed(**options: Any) -> Any:
    return zoo.quantize(zoo.create_model("transformer_nano"), **options).train()


def step(model: nn.Module) -> None:
    model(X, labels=X).backward()


@pytest.mark.parametrize("how", ["made", "loaded", "copied", "without labels"])
def test_a_backward_pass_that_nobody_meant_is_refused(how, tmp_path):
    model = compressed()
    if how == "loaded":
        zoo.save_model(model, tmp_path)
        model = zoo.create_model(f"local-dir:{tmp_path}").train()
    model = copy.deepcopy(model) if how == "copied" else model
    with pytest.raises(FrozenError, match=MESSAGE):
        model(X).sum().backward() if how == "without labels" else step(model)
    assert all(p.grad is None for p in model.parameters())


def test_an_optimiser_moves_nothing():
    model = compressed()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(FrozenError, match=MESSAGE):
        step(model)
    assert not optimizer.state and not any(p.grad is not None for p in model.parameters())


def test_calls_and_gradients_of_inputs_are_free():
    model = compressed()
    with torch.no_grad():
        expected = model(X)
    assert torch.equal(model(X), expected)  # with gradients on, and none asked for
    step(model.eval())
    assert model.blocks[0].norm.weight.grad.any()  # through the records behind it


def test_parts_that_were_said_to_learn_do():
    model = compressed().requires_grad_(False)
    chosen = [p for name, p in model.named_parameters() if "norm" in name]
    for parameter in chosen:
        parameter.requires_grad_(True)
    chosen.pop().requires_grad_(False)
    step(model)
    assert chosen and all(p.grad is not None and p.grad.any() for p in chosen)


@pytest.mark.parametrize("adapter", ["peqa", "l4q"])
def test_adapters_learn_through_records(adapter):
    model = zoo.adapt(compressed(), adapter).train()
    step(model)
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learns and all(p.grad is not None for p in learns.values())
    assert all(p.grad is None for record in records(model).values() for p in record.parameters())


def test_a_tensor_of_a_record_does_not_learn():
    model = compressed().requires_grad_(False)
    name, record = next(iter(records(model).items()))
    record.scale.requires_grad_(True)
    with pytest.raises(FrozenError, match=f"{name}.scale must not require a gradient: records are frozen"):
        step(model)
    assert record.scale.grad is None


@dataclasses.dataclass
class Found:
    values: dict[str, list[Tensor]]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Found:
        return Found({"y": [self.norm(self.first(x))]})


def test_outputs_of_any_form_are_watched():
    model = zoo.quantize(Nested()).train()
    with pytest.raises(FrozenError, match=r"first\.weight and 0 other weights"):
        model(torch.randn(2, 32)).values["y"][0].sum().backward()
