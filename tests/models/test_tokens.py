"""Models over patches: pooling, images of other sizes, what their blocks give; numbers beside timm's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import zoo

PATCHED = ["vit_nano", "vim_nano", "m3vit_nano"]


def peer(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    """timm's model, small."""
    small = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7, "img_size": 64}
    return timm.create_model(name, **small, **options).double().eval()


def ours(theirs: Any, **options: Any) -> Any:
    """The zoo's model with timm's weights."""
    small = {"dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7, "img_size": 64}
    model = zoo.create_model("vit_tiny_patch16_224", dtype=torch.float64, **(small | options)).eval()
    zoo.load_weights(model, theirs.state_dict())
    return model


@pytest.mark.parametrize("pooling", ["token", "avg", "max", "avgmax"])
def test_pooling_is_timms(pooling):
    theirs = peer(global_pool=pooling)
    model = ours(theirs, global_pool=pooling)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(images), theirs(images))
    features = model.forward_features(images)
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)
    for other in ("max", "token"):  # the norm stays where it was
        theirs.reset_classifier(5, other)
        model.reset_classifier(5, other)
        model.head.load_state_dict(theirs.head.state_dict())
        torch.testing.assert_close(model.double()(images), theirs.double()(images))
    theirs.reset_classifier(0, "")
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images), theirs(images))


@pytest.mark.parametrize("name", PATCHED)
def test_pooled_models_are_saved_and_read(name, tmp_path):
    model: Any = zoo.create_model(name, global_pool="avg").eval()
    model.reset_classifier(3, "max")
    images = torch.randn(2, 1, 8, 8)
    pooled = model.patch_tokens(model.forward_features(images)).amax(1)
    expected = model.head(model.fc_norm(pooled) if hasattr(model, "fc_norm") else pooled)
    torch.testing.assert_close(model(images), expected)
    again = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
    assert torch.equal(again(images), model(images))
    with pytest.raises(ValueError, match=r"global_pool must be 'token', 'avg'.* got 'mean'"):
        model.reset_classifier(3, "mean")
    with pytest.raises(ValueError, match="leaves tokens, which cannot be classified: got num_classes 10"):
        zoo.create_model(name, global_pool="")


@pytest.mark.parametrize(("made", "asked", "way_out"), [("token", "avg", False), ("avg", "token", True)])
def test_weights_with_the_norm_on_the_other_side_of_the_pooling(made, asked, way_out, tmp_path):
    zoo.save_model(zoo.create_model("vit_nano", global_pool=made), tmp_path)
    with pytest.raises(ValueError, match=f"global_pool='{asked}' .*: create it with fc_norm={way_out}"):
        zoo.create_model("vit_nano", checkpoint_path=tmp_path, global_pool=asked)
    model: Any = zoo.create_model("vit_nano", checkpoint_path=tmp_path, global_pool=asked, fc_norm=way_out)
    assert model.config.global_pool == asked


@pytest.mark.parametrize("shape", [(64, 64), (96, 48), (32, 32)])
def test_images_of_any_size_as_timm_takes_them(shape):
    theirs = peer(dynamic_img_size=True)
    model = ours(theirs, dynamic_img_size=True)
    images = torch.randn(2, 3, *shape, dtype=torch.float64)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-6, rtol=1e-6)  # resized in float32
    maps = model.forward_intermediates(images, intermediates_only=True)
    expected = theirs.forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-6)
    assert not model.pretrained_cfg["fixed_input_size"]


@pytest.mark.parametrize("name", PATCHED)
def test_a_model_for_any_size_is_the_one_made_for_it(name, tmp_path):
    model: Any = zoo.create_model(name, dynamic_img_size=True).eval()
    zoo.save_model(model, tmp_path)
    images = torch.randn(2, 1, 12, 6)
    made: Any = zoo.create_model(f"local-dir:{tmp_path}", img_size=(12, 6), dynamic_img_size=False).eval()
    torch.testing.assert_close(model(images), made(images))
    resized: Any = zoo.create_model(f"local-dir:{tmp_path}", dynamic_img_size=False).eval()
    resized.set_input_size((12, 6))
    torch.testing.assert_close(resized(images), made(images))
    assert resized.pretrained_cfg == made.pretrained_cfg
    with pytest.raises(ValueError, match=r"patches of 2 pixels at stride 2 must cover the images .* \(9, 8\)"):
        model(torch.randn(1, 1, 9, 8))
    with pytest.raises(ValueError, match="patches keep their size: create the model with patch_size=4"):
        model.set_input_size(8, patch_size=4)


def test_sizes_of_models_with_other_tables():
    model: Any = zoo.create_model("efficientvit_nano", img_size=4).eval()
    model.set_input_size(8)
    made: Any = zoo.create_model("efficientvit_nano").eval()
    made.load_state_dict(model.state_dict())
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(images), made(images))
    dense: Any = zoo.create_model("m3vit_nano", dense_tasks={"depth": 1}).eval()
    dense.set_input_size(12)
    assert dense(torch.randn(1, 1, 12, 12), "depth").shape == (1, 1, 12, 12)
    with pytest.raises(ValueError, match="dynamic_img_size is for answers an image"):
        zoo.create_model("m3vit_nano", dense_tasks={"depth": 1}, dynamic_img_size=True)
    with pytest.raises(ValueError, match="LightCNN has weights for images of its own size alone: branch_heads"):
        zoo.create_model("lightcnn_nano").set_input_size(16)  # type: ignore[operator]


@pytest.mark.parametrize("arguments", [{}, {"n": 2, "norm": True}, {"n": [0, 2], "reshape": True}])
def test_intermediate_layers_are_timms(arguments):
    theirs = peer()
    model = ours(theirs)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for prefix in (False, True):
        found = model.get_intermediate_layers(images, **arguments, return_prefix_tokens=prefix)
        expected = theirs.get_intermediate_layers(images, **arguments, return_prefix_tokens=prefix)
        torch.testing.assert_close(found, expected)


def test_the_class_token_of_vim_is_taken_from_the_middle():
    model: Any = zoo.create_model("vim_nano", dynamic_img_size=True).eval()
    images = torch.randn(2, 1, 6, 4)
    ((patches, token),) = model.get_intermediate_layers(images, norm=True, return_prefix_tokens=True)
    tokens = model.forward_features(images)
    assert torch.equal(torch.cat([patches[:, :3], token, patches[:, 3:]], dim=1), tokens)
    torch.testing.assert_close(model(images), model.head(tokens[:, 3]))


@pytest.mark.parametrize("name", ["vit_nano", "vim_nano", "shvit_nano"])
def test_pruning_leaves_what_the_features_need(name):
    model: Any = zoo.create_model(name).eval()
    images = torch.randn(2, 1, 8, 8)
    (expected,) = model.forward_intermediates(images, [1], intermediates_only=True)
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert len(model.layer_list()[1]) == 2 and model.num_classes == 0
    (found,) = model.forward_intermediates(images, [1], intermediates_only=True)
    assert torch.equal(found, expected)
