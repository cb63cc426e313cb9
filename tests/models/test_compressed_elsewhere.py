"""Compressed models where float ones go: profiles, torch's own fused layers and traces, other classes, exports."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.layers.quant import Record, records
from zoo.vision import FeatureNet


def compressed(name: str, **options: Any) -> Any:
    return zoo.quantize(zoo.create_model(name, **options).eval(), bits=4)


def images(model: Any) -> torch.Tensor:
    return torch.randn(2, model.config.in_chans, *model.config.image_shape)


def test_a_profile_has_no_training_where_nothing_learns():
    model = compressed("transformer_nano").to("meta")
    found = zoo.profile(model, tokens=8)
    assert [phase.name for phase in found.phases] == ["forward", "decode"] and found.dtype == "float32"
    assert found.untrained is not None and "are compressed, and frozen" in found.untrained
    with pytest.raises(ValueError, match="training must be left out for a model of which nothing learns, got True"):
        zoo.profile(model, tokens=8, training=True)
    adapted = zoo.profile(zoo.adapt(compressed("transformer_nano"), "lora").to("meta"), tokens=8)
    assert adapted.phase("training").flops and adapted.untrained is None


@pytest.mark.parametrize("mask", [None, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])])
@torch.no_grad()
def test_fused_layers_of_torch_call_the_layers(mask):
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = nn.Sequential()
    model.add_module("encoder", nn.TransformerEncoder(layer, 2))
    zoo.quantize(model.eval(), bits=4)
    encoder, x = model.get_submodule("encoder"), torch.randn(2, 5, 64)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = encoder(x, src_key_padding_mask=mask)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(encoder(x, src_key_padding_mask=mask), expected)
    record = next(iter(records(model).values()))
    assert (record.dtype, record.device) == (record.dequantise().dtype, record.codes.device)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_trace_agrees():
    model = compressed("vit_nano")
    x, other = images(model), images(model)
    traced: Any = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(other), model(other))


@pytest.mark.parametrize("name", ["vit_nano", "vovnet_nano"])
def test_a_folder_takes_other_classes(name, tmp_path):
    model = compressed(name)
    place, x = f"local-dir:{zoo.save_model(model, tmp_path)}", images(model)
    held = {name for name in records(model) if not name.startswith(model.classifier)}
    for classes in (7, 0):
        found: Any = zoo.create_model(place, num_classes=classes).eval()
        assert set(records(found)) == held and not any(isinstance(m, Record) for m in found.get_classifier().modules())
        assert torch.equal(found.forward_features(x), model.forward_features(x))
        assert classes == 0 or found(x).shape == (2, classes)
    maps = FeatureNet(copy.deepcopy(model))(x)
    found = zoo.create_model(place, features_only=True).eval()(x)
    assert maps and all(torch.equal(ours, theirs) for ours, theirs in zip(found, maps, strict=True))
    assert torch.equal(zoo.create_model(place).eval()(x), model(x))  # type: ignore[operator]


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize(("layout", "operation"), [
    ("int", r"zoo\.lowbit_matmul\.default"), ("binary", r"aten\.__rshift__\.Tensor"),
    ("e2m1", r"aten\.__rshift__\.Tensor"), (None, r"zoo\.sparse_matmul\.default"),
])  # fmt: skip
def test_what_has_no_onnx_form_is_named(layout, operation, step, tmp_path):
    model: Any = zoo.create_model("transformer_nano", depth=1).eval()
    model = zoo.sparsify(model, "magnitude") if layout is None else zoo.quantize(model, layout=layout, bits=4)
    with pytest.raises(ValueError, match=rf"computes {operation}, which has no ONNX form here"):
        zoo.export_onnx(model, tmp_path / "file.onnx", step=step)
    assert not list(tmp_path.iterdir())
