"""What holds for every hierarchical backbone: fusing, deploying, feature maps, recomputation, memory formats."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import zoo
from zoo.vision import HierarchicalModel

NANO = [
    name
    for name in zoo.list_models("*_nano", task="image-classification")
    if isinstance(zoo.create_model(name, device="meta"), HierarchicalModel)
]


def trained(name: str, **options: Any) -> Any:
    """A model as after training: no branch closed, every statistic its own."""
    model: Any = zoo.create_model(name, **options)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.0)
    with torch.no_grad():
        for _ in range(5):
            model.train()(images(model, 8))
    return model.eval()


def images(model: Any, batch: int = 2, side: int = 16) -> torch.Tensor:
    parameter = next(model.parameters())
    return torch.randn(batch, model.config.in_chans, side, side, dtype=parameter.dtype)


@pytest.mark.parametrize("name", NANO)
def test_fusing_changes_nothing_but_the_layers(name, tmp_path):
    model = trained(name)
    x = images(model)
    expected, count = model(x), sum(p.numel() for p in model.parameters())
    fused = copy.deepcopy(model).train().fuse()
    assert not fused.training and not model.fused
    torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-5)
    assert not [m for m in fused.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert sum(p.numel() for p in fused.parameters()) < count or name == "vmamba_nano"  # it has no batch norm
    assert fused.get_classifier().weight.shape == (10, fused.num_features)
    torch.testing.assert_close(torch.export.export(fused, (x,)).module()(x), fused(x))
    with pytest.raises(ValueError, match=r"save it before fuse\(\)"):
        zoo.save_model(fused, tmp_path)


@pytest.mark.parametrize("name", NANO)
def test_deploy_and_features_from_saved_weights(name, tmp_path):
    model = trained(name)
    zoo.save_model(model, tmp_path)
    x = images(model)
    deployed: Any = zoo.create_model(name, checkpoint_path=tmp_path, deploy=True)
    assert deployed.fused and not deployed.training
    kernels = [m.weight for m in deployed.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    torch.testing.assert_close(deployed(x), model(x), atol=1e-5, rtol=1e-5)

    last, maps = model.forward_intermediates(x)
    features: Any = zoo.create_model(f"local-dir:{tmp_path}", features_only=True).eval()
    for ours, wanted, info in zip(features(x), maps, features.feature_info, strict=True):
        assert torch.equal(ours, wanted)
        assert wanted.shape[1:] == (info["num_chs"], 16 // info["reduction"], 16 // info["reduction"])
    assert torch.equal(model.norm(maps[-1]), last)
    first: Any = zoo.create_model(name, checkpoint_path=tmp_path, features_only=True, out_indices=[0]).eval()
    assert torch.equal(first(x)[0], maps[0]) and len(first.model.stages) == 1
    assert first.feature_info.channels() == [maps[0].shape[1]] and first.feature_info.module_name() == ["stages.0"]
    fast: Any = zoo.create_model(name, checkpoint_path=tmp_path, features_only=True, out_indices=1, deploy=True)
    torch.testing.assert_close(fast(x), maps[-1:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="indices must name some of"):
        zoo.create_model(name, features_only=True, out_indices=[7])


@pytest.mark.parametrize("name", NANO)
def test_recomputation_leaves_the_statistics_as_they_are_without_it(name):
    model = trained(name).train()
    x, states = images(model), []
    for enable in (False, True):
        copied = copy.deepcopy(model)
        copied.set_grad_checkpointing(enable)
        copied(x).square().mean().backward()
        states.append(copied.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert {count.item() for key, count in states[0].items() if key.endswith("num_batches_tracked")} <= {6}


@pytest.mark.parametrize("name", NANO)
def test_memory_format_and_low_precision_change_rounding_alone(name):
    model = trained(name)
    x = images(model)
    expected = model(x)
    wide = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(wide(x.to(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-5)
    narrow: Any = zoo.create_model(name, dtype=torch.bfloat16).eval()
    narrow.load_state_dict(model.state_dict())
    scale = expected.abs().max()
    for low in (narrow, narrow.fuse(), copy.deepcopy(model).bfloat16()):
        assert (low(x.bfloat16()).float() - expected).abs().max() < 0.05 * scale
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x).float() - expected).abs().max() < 0.05 * scale


@pytest.mark.parametrize("name", NANO)
def test_classifier_and_pooling(name):
    model: Any = zoo.create_model(name).eval()
    x = images(model)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x)) and model(x).dim() == 4
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)
    with pytest.raises(ValueError, match="global_pool must be"):
        model.reset_classifier(3, "token")
    tokens = model.forward_intermediates(x, indices=[-1], norm=True, output_fmt="NLC", intermediates_only=True)[0]
    assert torch.equal(tokens.mT.reshape(model.forward_features(x).shape), model.forward_features(x))
    for wrong in (torch.randn(2, 3, 16, 16), torch.randn(1, 16, 16)):
        with pytest.raises(ValueError, match=r"images must have shape \(batch, 1, height, width\)"):
            model(wrong)


@pytest.mark.parametrize("name", NANO)
def test_groups_rise_with_depth(name):
    model: Any = zoo.create_model(name)
    depths = model.config.depths
    for coarse, groups in ((True, 1 + len([d for d in depths if d])), (False, 1 + sum(depths))):
        found = timm.models.group_parameters(model, model.group_matcher(coarse))
        assert len(found) == groups + 1  # and the head
        assert "stages.0.downsample.0.conv.weight" in found[0] and all(".downsample." in key for key in found[0])


def test_forms_are_for_vision_models():
    with pytest.raises(ValueError, match="deploy and features_only are for vision models, got Mamba"):
        zoo.create_model("mamba_nano", deploy=True)
    with pytest.raises(ValueError, match="out_indices go with features_only"):
        zoo.create_model("vit_nano", out_indices=2)


@pytest.mark.parametrize("name", ["vit_nano", "vim_nano"])
def test_token_models_take_part(name):
    model: Any = zoo.create_model(name, deploy=True)
    features: Any = zoo.create_model(name, features_only=True, out_indices=[1, -1]).eval()
    features.model.load_state_dict({k: v for k, v in model.state_dict().items() if k in features.model.state_dict()})
    x = torch.randn(2, 1, 8, 8)
    wanted = model.forward_intermediates(x, indices=[1, -1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(x), wanted, strict=True))
    assert features.feature_info.reduction() == [2, 2]
