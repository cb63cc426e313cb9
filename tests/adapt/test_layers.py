"""What the layers of adapters compute: columns in a matrix, attention in shifted groups, lean blocks, a ladder."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.layers import CausalAttention, ShiftedAttention
from zoo.layers.adapt import LeanInvertedResidual, PartialLinear
from zoo.layers.adapt.lean import packed, unpacked
from zoo.layers.conv import InvertedResidual


def kept_bytes(call: Any) -> int:
    """Of what is kept for the backward pass, each memory once, parameters left out."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = call()  # noqa: F841 - its graph lives until all is counted
    return sum(sizes.values())


def test_partial_linear_is_the_matrix_with_the_columns_in_it():
    source, x = nn.Linear(7, 5).double(), torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    layer = PartialLinear(copy.deepcopy(source), torch.tensor([1, 4, 6]))
    assert torch.equal(layer(x), source(x))
    nn.init.normal_(layer.columns)
    with torch.no_grad():
        source.weight[:, layer.index] = layer.columns
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = layer(x)
    assert torch.equal(y, source(x)) and torch.equal(layer.plain()(x), y) and x.data_ptr() not in kept
    weights = torch.randn_like(y)
    dx, dcolumns = torch.autograd.grad(y, (x, layer.columns), weights)
    expected, dense = torch.autograd.grad(source(x), (x, source.weight), weights)
    torch.testing.assert_close(dx, expected)
    torch.testing.assert_close(dcolumns, dense[:, layer.index])
    assert torch.autograd.gradcheck(layer, x.detach().requires_grad_())


def test_partial_linear_under_autocast_and_in_low_precision():
    layer = PartialLinear(nn.Linear(8, 4), torch.arange(3))
    x = torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and layer.columns.grad.any() and x.grad.dtype == torch.float32
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def by_token(layer: ShiftedAttention, q: Tensor, k: Tensor, v: Tensor, ids: Tensor | None) -> Tensor:
    """(H, T, d): every token of every head looks for its keys."""
    heads, length, width = q.shape
    size, first = -(-length // layer.groups), heads - layer.shifted_heads
    rows = torch.zeros_like(q)
    for head in range(heads):
        shift = size // 2 if head >= first else 0
        group = [((t - shift) % (layer.groups * size)) // size for t in range(length)]
        for t in range(length):
            keys = [s for s in range(t + 1) if group[s] == group[t] or s < layer.sink_tokens]
            keys = [s for s in keys if ids is None or ids[s] == ids[t]]
            weights = (k[head, keys] @ q[head, t] / width**0.5).softmax(-1)
            rows[head, t] = weights @ v[head, keys]
    return rows


def shifted(groups: int, sinks: int, returned: float, **options: Any) -> ShiftedAttention:
    return ShiftedAttention.of(CausalAttention(32, 4, **options).double(), groups, sinks, returned).train()


@pytest.mark.parametrize(
    ("groups", "sinks", "returned", "length"), [(4, 0, 0.0, 16), (4, 2, 0.5, 16), (3, 4, 0.0, 17), (2, 1, 1.0, 9)]
)
def test_shifted_attention_is_its_definition(groups, sinks, returned, length):
    layer = shifted(groups, sinks, returned)
    assert layer.shifted_heads == round(2 * (1 - returned))
    q, k, v = (torch.randn(2, 4, length, 8, dtype=torch.float64) for _ in range(3))
    for ids in (None, (torch.arange(length) > 6).long().expand(2, -1)):
        place = layer.place(torch.zeros(2, length, 32), None, ids)
        expected = [by_token(layer, *(h[b] for h in (q, k, v)), None if ids is None else ids[b]) for b in range(2)]
        torch.testing.assert_close(layer.mix(q, k, v, place), torch.stack(expected))


def test_shifted_attention_sees_nothing_later_and_one_group_is_whole():
    layer, x = shifted(4, 2, 0.0, num_kv_heads=2), torch.randn(1, 16, 32, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x).sum((0, 2)), x)[:, 0].abs().sum(-1)
    assert not jacobian.triu(1).any(), "the wrapped group has no leak"
    assert (jacobian[9:, :2] > 0).all(), "all see the sinks"
    assert not jacobian[15, 2:12].any() and jacobian[15, 12:].all()
    whole = layer.plain()
    assert type(whole) is CausalAttention and not hasattr(whole, "groups")
    assert torch.equal(layer.eval()(x), whole(x)) and torch.equal(shifted_to_one(layer)(x), whole(x))
    state = layer.train().init_state(1)
    torch.testing.assert_close(torch.cat([layer(part, state) for part in x.split([7, 9], 1)], 1), whole(x))


def shifted_to_one(layer: ShiftedAttention) -> ShiftedAttention:
    return ShiftedAttention.of(layer.plain(), 1, 0, 0.0).train()


def test_lean_residuals_differ_in_what_they_keep():
    torch.manual_seed(1)
    source = InvertedResidual(8, 8, 4, 3).double()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    block, x = LeanInvertedResidual.of(source), torch.randn(2, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    for part in (block, source):
        part.eval()
    assert torch.equal(block(x), source(x)) and torch.equal(block.plain()(x), source(x))
    assert [name for name, _ in block.named_parameters()] == [name for name, _ in source.named_parameters()]
    dy = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    names = ["expand.conv.weight", "expand.bn.bias", "depthwise.bn.bias", "project.bn.weight"]
    found = torch.autograd.grad(block(x), [x, *(block.get_parameter(name) for name in names)], dy)

    def as_relu(conv: Any, x: Tensor) -> Tensor:  # forward a ReLU6, backward a ReLU
        z = conv.bn(conv.conv(x))
        return F.relu(z) + (F.relu6(z) - F.relu(z)).detach()

    y = x + source.project(as_relu(source.depthwise, as_relu(source.expand, x)))
    expected = torch.autograd.grad(y, [x, *(source.get_parameter(name) for name in names)], dy)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert kept_bytes(lambda: block(x)) < 0.7 * kept_bytes(lambda: source.train()(x))


def test_bits_are_packed():
    for count in (1, 8, 13, 64):
        mask = torch.rand(count) > 0.5
        assert len(packed(mask)) == -(-count // 8) and torch.equal(unpacked(packed(mask), mask.shape), mask)


def test_frozen_norms_keep_their_statistics_until_merged():
    model: Any = zoo.adapt(zoo.create_model("mcunet_nano", pretrained=True), "mobiletl", blocks=1)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running_mean" in name}
    model.train()(torch.randn(4, model.config.in_chans, *model.config.image_shape))
    moved = [name for name, buffer in before.items() if not torch.equal(model.get_buffer(name), buffer)]
    assert len(moved) == 1 and all(".project." in name for name in moved)
    plain = zoo.merge_adapter(model).train()
    assert all(module.training for module in plain.modules())


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano"])
def test_a_ladder_decodes_and_sends_no_gradient_through_the_model(name):
    model: Any = zoo.create_model(name, pretrained=True, dtype=torch.float64)
    zoo.adapt(model, "ladder", reduction=4)
    nn.init.normal_(model.blocks[-1].up.weight)
    tokens = torch.arange(30).reshape(2, 15)
    model(tokens, labels=tokens).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    model.eval()
    expected, state = model(tokens), model.init_state(2)
    steps = torch.cat([model(part, state) for part in tokens.split([9, *[1] * 6], 1)], 1)
    torch.testing.assert_close(steps, expected)
    assert zoo.generate(model, tokens[:1], 3, temperature=0).shape == (1, 18)


def test_a_ladder_keeps_nothing_of_the_model():
    """With a rung at the last block alone, what is kept does not depend on how many there are."""
    tokens = torch.arange(24).reshape(2, 12)

    def kept(depth: int, kind: str, **options: Any) -> int:
        model: Any = zoo.adapt(zoo.create_model("transformer_nano", depth=depth), kind, **options)
        return kept_bytes(lambda: model(tokens))

    assert kept(2, "ladder", every=2) == kept(6, "ladder", every=6)
    assert kept(6, "paca") > 2 * kept(2, "paca")


def test_a_gate_of_one_cuts_the_ladder():
    model: Any = zoo.adapt(zoo.create_model("transformer_nano", pretrained=True), "ladder").eval()
    rung = model.blocks[0]
    nn.init.constant_(rung.gate, 10.0)  # sigmoid(100) is 1
    x = torch.randn(1, 5, 128)
    other = copy.deepcopy(rung)
    nn.init.normal_(other.down.weight)
    assert torch.equal(rung(x), other(x))


@pytest.mark.parametrize(
    ("name", "kind", "options", "message"),
    [
        ("vit_nano", "ladder", {}, "a ladder takes a language model"),
        ("mor_nano", "ladder", {}, "a ladder takes a language model whose blocks run one after the other"),
        (
            "transformer_nano",
            "ladder",
            {"reduction": 3},
            "reduction=3 stands beside .*it must divide the model's widths",
        ),
        ("transformer_nano", "ladder", {"targets": ["*"]}, "a ladder stands beside the whole model"),
        ("transformer_nano", "paca", {"rank": 10**6}, "paca: rank must be at most 384, .* got 1000000"),
        ("transformer_nano", "mobiletl", {}, "mobiletl: TransformerLanguageModel has no layer that it can be put on"),
        ("mamba2_nano", "sink_lora", {}, "sink_lora takes a model with whole softmax attention"),
        ("transformer_nano", "sink_lora", {"returned": 2.0}, r"returned must be in \[0, 1\], got 2.0"),
        ("transformer_nano", "sink_lora", {"groups": 0}, "groups must be at least 1, got 0"),
    ],
)
def test_models_and_options_that_do_not_fit(name, kind, options, message):
    model = zoo.create_model(name)
    keys = model.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        zoo.adapt(model, kind, **options)
    assert model.state_dict().keys() == keys and all(p.requires_grad for p in model.parameters())
