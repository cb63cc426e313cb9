"""Adapters of compressed models: the contract over records, and what scales, tables and following codes compute."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapt.test_contract import inputs, plain, trained
from torch import Tensor

import zoo
from zoo.adapt import adapters_of, own_names
from zoo.layers.adapt import placed
from zoo.layers.adapt.records import QuantisedLoRA, TunedRecord
from zoo.layers.quant import Format, Record, records
from zoo.layers.quant.layers import Linear
from zoo.layers.quant.layouts.table import sketch
from zoo.quantize import Calibration

BASES = {"peqa": "int", "l4q": "int", "sketchtune": "table"}
CASES = {"peqa": {}, "l4q": {"rank": 3, "alpha": 300.0}, "sketchtune": {}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Compressed models by layout."""
    found = {}
    for layout in ("int", "table"):
        model = zoo.create_model("transformer_nano", pretrained=True)
        if layout == "int":
            zoo.quantize(model, bits=3)
        else:
            zoo.quantize(model, "sketch", bits=3, calibration=Calibration([inputs(model)]))
        found[layout] = f"local-dir:{zoo.save_model(model, tmp_path_factory.mktemp(layout))}"
    return found


def built(folder: str, **options: Any) -> Any:
    return zoo.create_model(folder, dtype=torch.float64, **options).eval()


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(layout: str = "int", bits: int = 3, **options: Any) -> Linear:
    form = Format(layout=layout, bits=bits, group_size=16, scale_dtype="float32", **options)
    return Linear(Record.nearest(matrix(7, 32), form), torch.nn.Parameter(matrix(7)))


@pytest.mark.parametrize("kind", CASES)
def test_the_contract(kind, folders, tmp_path):
    """No output changes at first, nothing else than the own parts ever does, files, and merging to the bit."""
    model = built(folders[BASES[kind]])
    x = inputs(model)
    expected, start = model(x), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    zoo.adapt(model, kind, **CASES[kind])
    assert torch.equal(model(x), expected)
    own = own_names(model)
    first = {key: model.state_dict()[key].clone() for key in own}
    optimizer = trained(model)
    assert all(torch.equal(tensor, start[key]) for key, tensor in plain(model).items())
    learns = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == set(own) and all(not torch.equal(first[key], model.state_dict()[key]) for key in learns)
    held = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    assert sum(t.numel() for t in held) == 2 * sum(model.get_parameter(key).numel() for key in learns)
    found = model(x)
    assert not torch.allclose(found, expected)
    zoo.save_adapter(model, tmp_path / "adapter")
    again = built(folders[BASES[kind]], adapter=tmp_path / "adapter")
    assert torch.equal(again(x), found) and adapters_of(again) == adapters_of(model)
    merged = zoo.merge_adapter(copy.deepcopy(model))
    assert torch.equal(merged(x), found) and not placed(merged) and merged.state_dict().keys() == start.keys()
    assert not any(p.requires_grad for record in records(merged).values() for p in record.parameters())
    whole = built(f"local-dir:{zoo.save_model(merged, tmp_path / 'merged')}")
    assert torch.equal(whole(x), found)


def test_scales_and_tables_move_all_that_have_them_and_no_code():
    """The gradient of a scale is that of (q - z), of a number in a table the sum over its members."""
    x, dy = matrix(5, 32, seed=1), matrix(5, 7, seed=2)
    for layout, part in (("int", "scale"), ("table", "table")):
        base = layer(layout)
        tuned = TunedRecord(base, part)
        codes = base.weight.unpacked()
        tuned(x).backward(dy)
        dw = (dy.mT @ x).unflatten(1, (2, 16))
        q = codes.unflatten(1, (2, 16))
        if layout == "int":
            expected = (dw * (q.float() - base.weight.zero.float()[..., None])).sum(-1)  # type: ignore[union-attr]
        else:
            expected = torch.zeros(7, 2, 8).scatter_add(-1, q.long(), dw)
        torch.testing.assert_close(tuned.delta.grad, expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            tuned.delta.add_(0.01 * matrix(*tuned.delta.shape))
        moved = tuned.plain()
        assert torch.equal(moved.weight.unpacked(), codes) and torch.equal(moved(x), tuned(x))
    with torch.no_grad():
        base, tuned = layer("table"), TunedRecord(layer("table"), "table")
        tuned.delta[3, 1, 5] = 1.0
        change = tuned.plain().weight.dequantise() - base.weight.dequantise()
    members = base.weight.unpacked().unflatten(1, (2, 16))[3, 1] == 5
    assert torch.equal(change[3, 16:] != 0, members) and not change[:3].any()


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_of_following_codes(symmetric):
    """Those of autograd through straight-through rounding, with scales of their own; some weights are out of range."""
    base = layer(symmetric=symmetric)
    tuned = QuantisedLoRA(base, 2, 4.0, torch.empty(0))
    with torch.no_grad():
        tuned.B.copy_(0.4 * matrix(7, 2, seed=4))
        tuned.delta.copy_(0.03 * matrix(7, 2, seed=5).abs())
    x, dy = matrix(3, 5, 32, seed=1).requires_grad_(), matrix(3, 5, 7, seed=2)
    y = tuned(x)
    y.backward(dy)
    A, B, delta, point = (t.detach().clone().requires_grad_() for t in (tuned.A, tuned.B, tuned.delta, x))
    record = base.weight
    zero = torch.full((7, 2, 1), 4.0) if record.zero is None else record.zero.float()[..., None]
    q = record.unpacked().float().unflatten(1, (2, 16))
    scale = (record.scale + delta)[..., None]
    v = (record.scale[..., None] * (q - zero) + (2 * B @ A).unflatten(1, (2, 16))) / scale + zero
    inside = (v >= 0) & (v <= 7)
    rounded = torch.where(inside, v + (v.round() - v).detach(), v.detach().round().clamp(0, 7))
    expected = point @ (scale * (rounded - zero)).flatten(1).mT + base.bias
    assert ((v < 0) | (v > 7)).any() and (v.round() != q).any()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    expected.backward(dy)
    for found, exact in ((tuned.A, A), (tuned.B, B), (tuned.delta, delta), (x, point)):
        torch.testing.assert_close(found.grad, exact.grad, rtol=1e-3, atol=1e-4)
    assert torch.equal(tuned.plain()(x.detach()), y.detach())


def test_nothing_of_the_matrix_is_kept_for_the_backward_pass():
    kept: list[int] = []
    for tuned in (QuantisedLoRA(layer(), 2, 4.0, torch.empty(0)), TunedRecord(layer(), "scale")):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            tuned(matrix(2, 32).requires_grad_()).sum().backward()
    assert kept and max(kept) < 7 * 32


@pytest.mark.parametrize("bits", [2, 4])
def test_a_sketch_is_no_worse_than_even_steps_and_exact_where_it_can_be(bits):
    w, weight = matrix(5, 64), matrix(64).square() + 0.01
    form = Format(layout="table", bits=bits, group_size=None, scale_dtype="float32")
    q, table = sketch(w, form, weight)
    found = table.gather(-1, q.unflatten(1, (1, -1)).long()).flatten(1)
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    even = low + (high - low) * ((w - low) / (high - low) * (2**bits - 1)).round() / (2**bits - 1)
    errors = [(weight * (t - w).square()).sum(1) for t in (found, even)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all() and errors[0].sum() < 0.9 * errors[1].sum()
    few = w[:, : 2**bits].repeat(1, 4)
    if bits == 2:
        few = torch.linspace(-1, 1, 4).repeat(5, 4)
        assert torch.equal(Record.nearest(few, form).dequantise(), few)
    assert Record((5, 64), form).nbytes * 8 == 5 * (64 * bits + 32 * 2**bits)


@pytest.mark.parametrize(
    ("kind", "layout", "options", "message"),
    [
        ("peqa", "table", {}, "peqa tunes linear layers over plain records of layout 'int', and the model has none"),
        ("sketchtune", "int", {}, "sketchtune tunes linear layers over plain records of layout 'table'"),
        ("l4q", "int", {"rank": 0}, "rank must be at least 1, got 0"),
        ("peqa", "int", {"targets": ["*.norm"]}, "names no layer that peqa can be put on"),
    ],
)
def test_what_does_not_fit(kind, layout, options, message, folders):
    model = built(folders[layout])
    with pytest.raises(ValueError, match=message):
        zoo.adapt(model, kind, **options)
    assert not adapters_of(model) and not placed(model)
    with pytest.raises(ValueError, match="its layout is 'table', got 'int'"):
        zoo.quantize(
            zoo.create_model("transformer_nano"), "sketch", layout="int", calibration=Calibration([inputs(model)])
        )
