"""Whatever replaces, wraps or watches a linear layer is in effect: layers call it and never read its weights."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from cases import tracking
from cases.names import by_kind
from zoo.layers import quant
from zoo.layers.linear import ROWS, WideBias, WideLinear, head_loss, is_plain, read_matrix

NANO = [name for name in zoo.list_models("*_nano") if name != "revunet3d_nano"]  # it has no linear layer
LANGUAGE = zoo.list_models("*_nano", task="language")


class Int8(nn.Module):
    """A linear layer of int8 weights, rounded to 127 steps a row; it has nothing of nn.Linear but the forward."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.weight * self.scale).to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class LoRA(nn.Module):
    """y = linear(x) + B A x of rank 2, with neither factor zero."""

    def __init__(self, linear: Any):
        super().__init__()
        self.base = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.1 * self.up(self.down(x))


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def replaced(model: Any, wrapper: Any) -> Any:
    for name, linear in linears(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, wrapper(linear))
    return model


def built(name: str) -> Any:
    """A nano whose branches are open, with all that training alone has."""
    further = {"deepseek_nano": {"mtp_depth": 1}}.get(name, {})
    model = zoo.create_model(name, **further)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model


def trained(name: str) -> Any:
    """A nano in evaluation mode, with weights where there are some: trained routers have few ties. Trained world models
    take the likeliest of categories, and have many in noise."""
    weights = zoo.model_info(name).tags and zoo.model_info(name).task != "world-model"
    return zoo.create_model(name, pretrained=True).eval() if weights else built(name).eval()


def inputs(model: Any, batch: int = 2, length: int = 24) -> Tensor:
    config = model.config
    if hasattr(config, "vocab_size"):
        return torch.randint(0, config.vocab_size, (batch, length))
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.float32}  # codes are of integers
    dtype = functools.reduce(torch.promote_types, kinds)  # and their scales narrow
    if hasattr(config, "in_features"):
        return torch.randn(batch, getattr(config, "length", length), config.in_features, dtype=dtype)
    if hasattr(config, "input_shape"):
        return torch.randn(batch, *config.input_shape, dtype=dtype)
    if hasattr(config, "num_levels"):
        return torch.randint(0, config.num_levels, (batch, config.in_chans, *config.image_shape))
    return torch.randn(batch, config.in_chans, *config.image_shape)


def loss_of(model: Any, x: Tensor) -> Tensor:
    if hasattr(model, "track"):
        return tracking.loss(model, x)
    if hasattr(model.config, "text_vocab_size"):  # texts have layers of their own
        texts = torch.randint(0, model.config.text_vocab_size, (len(x), 8))
        return model(x).square().mean() + model(texts, torch.ones_like(texts)).square().mean()
    scored = x.is_floating_point() or hasattr(model.config, "num_classes")
    loss = model(x).square().mean() if scored else model(x, labels=x)
    return loss + sum(zoo.auxiliary_losses(model).values())


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", NANO)
def test_int8_in_place_of_every_linear(name):
    model = trained(name)
    x = inputs(model)
    with torch.no_grad():
        expected = model(x)
        found = replaced(model, Int8)(x)
        assert distance(found, expected) < 0.03
        if name in LANGUAGE:
            state = model.init_state(len(x))
            steps = [model(part, state) for part in x.split([10, 1, 1, 12], dim=1)]
            torch.testing.assert_close(torch.cat(steps, dim=1), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NANO)
def test_adapters_around_every_linear_learn(name):
    model = replaced(built(name).train(), LoRA)
    for _ in range(3):
        loss_of(model, inputs(model, batch=4)).backward()
    adapters = [module for module in model.modules() if isinstance(module, LoRA)]
    gradients = [part.weight.grad for adapter in adapters for part in (adapter.down, adapter.up)]
    assert gradients and all(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", by_kind(NANO))
def test_records_are_read_and_adapters_beside_them_learn(name, monkeypatch):
    """Of linear layers, embeddings, experts and convolutions; forward and backward, as a float layer is."""
    read: set[int] = set()
    for way in ("matmul", "dequantise"):
        plain = getattr(quant.Record, way)
        noted = lambda self, *args, plain=plain, **rest: read.add(id(self)) or plain(self, *args, **rest)  # noqa: E731
        monkeypatch.setattr(quant.Record, way, noted)
    model: Any = zoo.quantize(built(name).train(), bits=8, symmetric=True).requires_grad_(False)
    layers = {key: module for key, module in model.named_modules() if isinstance(module, quant.Linear)}
    for key, layer in layers.items():
        parent, _, child = key.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRA(layer))
    for _ in range(3):
        loss_of(model, inputs(model, batch=4)).backward()
    assert read == {id(record) for record in quant.records(model).values()}
    adapters = [module for module in model.modules() if isinstance(module, LoRA)]
    assert len(adapters) == len(layers)
    gradients = [part.weight.grad for adapter in adapters for part in (adapter.down, adapter.up)]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", NANO)
def test_every_linear_is_called(name):
    model, calls = built(name).train(), {}
    for key, linear in linears(model).items():
        linear.register_forward_hook(lambda *_, key=key: calls.update({key: calls.get(key, 0) + 1}))
    x = inputs(model, batch=4)
    loss_of(model, x)
    assert set(calls) == set(linears(model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
@pytest.mark.parametrize("family", ["mamba", "vim", "moe", "deepseek", "mod", "mor", "m3vit"])
def test_dynamic_quantisation_by_torch(family):
    model = trained(f"{family}_nano")
    x = inputs(model)
    with torch.no_grad():
        expected = model(x)
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        assert distance(quantised(x), expected) < 0.25  # activations are int8 too


def test_the_loss_of_a_replaced_head_is_that_of_its_logits():
    head, x = nn.Linear(8, 11), torch.randn(2 * ROWS + 3, 8, requires_grad=True)
    labels = torch.randint(0, 11, (len(x),)).where(torch.rand(len(x)) > 0.2, -100)
    wrapped = LoRA(head)
    head.requires_grad_(True)
    found, expected = head_loss(wrapped, x, labels), F.cross_entropy(wrapped(x), labels)
    torch.testing.assert_close(found, expected)
    wanted = [x, *wrapped.parameters()]
    for a, b in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(head_loss(head, x, labels), F.cross_entropy(head(x), labels))
    with torch.no_grad():
        assert head_loss(wrapped, x, torch.full_like(labels, -100)).item() == 0
        torch.testing.assert_close(head_loss(wrapped, x, labels), expected)


def test_a_linear_is_plain_unless_replaced_wrapped_or_watched():
    linear = nn.Linear(3, 4, bias=False)
    assert is_plain(linear) and not is_plain(LoRA(linear)) and not is_plain(WideLinear(3, 4))
    handle = linear.register_forward_hook(lambda *_: None)
    assert not is_plain(linear)
    handle.remove()
    assert is_plain(linear) and read_matrix(linear, torch.ones(1, 3)) is linear.weight
    nn.utils.parametrizations.weight_norm(linear)
    assert not is_plain(linear)
    torch.testing.assert_close(read_matrix(linear, torch.ones(1, 3)), linear.weight)


@pytest.mark.parametrize("kind", [WideLinear, WideBias])
def test_wide_layers_return_float32(kind):
    layer, x = kind(16, 4), torch.randn(5, 16)
    with torch.no_grad():
        layer.bias.fill_(-5.0)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = layer(x)
    exact = F.linear(x.bfloat16().double(), layer.weight.bfloat16().double(), layer.bias.double())
    for found in (under_autocast, layer.bfloat16()(x.bfloat16())):
        assert found.dtype == torch.float32 and (found - exact).abs().max() < 0.02  # |y| is 5: bfloat16 is 0.02 apart


def test_hooks_on_the_latent_projection_see_tokens_when_decoding():
    model, seen = zoo.create_model("deepseek_nano").eval(), []
    model.blocks[0].mixer.kv_b_proj.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-2]))
    tokens, state = torch.randint(0, 256, (1, 6)), model.init_state(1)
    with torch.no_grad():
        whole = model(tokens)
        steps = torch.cat([model(tokens[:, t : t + 1], state) for t in range(6)], dim=1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-5)
    assert seen == [6, 1, 2, 3, 4, 5, 6]


def test_states_of_a_compressed_model_have_the_dtype_it_computes_in():
    for name in LANGUAGE:
        model = replaced(zoo.create_model(name, dtype=torch.bfloat16), Int8)
        for state in model.init_state(1):
            floating = [t.dtype for _, t in state.tensors() if t.is_floating_point()]
            assert floating and set(floating) <= {torch.bfloat16, torch.float32}, name
            assert all(t.dtype in (torch.int64, torch.bfloat16, torch.float32) for _, t in state.tensors()), name
