"""Weights under other channels, classes and image sizes than they were made for: as timm adapts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models._manipulate import adapt_input_conv

import zoo
from zoo.loading import adapt_channels

IMAGE = zoo.list_models("*_nano", task="image-classification")


def doors(name: str, folder: Path) -> dict[str, Any]:
    """Every door through which the bundled weights of a nano model come: a function of overrides each."""
    model = zoo.create_model(name, pretrained=True)
    zoo.save_model(model, folder / "folder")
    torch.save({"model": model.state_dict()}, folder / "file.pth")
    return {
        "pretrained": lambda **options: zoo.create_model(name, pretrained=True, **options),
        "file": lambda **options: zoo.create_model(name, checkpoint_path=folder / "file.pth", **options),
        "folder": lambda **options: zoo.create_model(f"local-dir:{folder / 'folder'}", **options),
    }


@pytest.mark.parametrize("name", IMAGE)
def test_colour_images_for_grey_weights(name):
    """Equal channels: the same response."""
    if "in_chans" not in zoo.model_info(name).config:
        pytest.skip("images of one channel alone")
    grey: Any = zoo.create_model(name, pretrained=True).eval()
    colour: Any = zoo.create_model(name, pretrained=True, in_chans=3).eval()
    x = torch.rand(2, 1, *grey.config.image_shape)
    assert colour.config.in_chans == 3
    torch.testing.assert_close(colour(x.expand(-1, 3, -1, -1)), grey(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
def test_channels_as_timm_adapts_them(channels):
    weight = torch.randn(8, 3, 4, 4)
    adapted = adapt_channels({"w": weight}, "w", channels)["w"]
    torch.testing.assert_close(adapted, adapt_input_conv(channels, weight))
    half = adapt_channels({"w": weight.half()}, "w", channels)["w"]
    torch.testing.assert_close(
        half, adapt_input_conv(channels, weight.half().float()), check_dtype=False
    )  # not rounded once more


def test_channels_and_classes_through_every_door(tmp_path):
    for door, load in doors("vit_nano", tmp_path).items():
        model = load(in_chans=3, num_classes=4)
        original: Any = load()
        assert model.head.weight.shape == (4, 64) and model.config.num_classes == 4, door
        assert model(torch.rand(1, 3, 8, 8)).shape == (1, 4)
        assert torch.equal(model.blocks[0].attn.qkv.weight, original.blocks[0].attn.qkv.weight)
        bare = load(num_classes=0)
        assert isinstance(bare.head, torch.nn.Identity)
        x = torch.rand(1, 1, 8, 8)
        assert torch.equal(bare.eval()(x), original.eval().forward_head(original.forward_features(x), pre_logits=True))


@pytest.mark.parametrize("name", ["s4_text_nano", "pcdarts_nano", "efficientvit_nano", "s4_pixel_nano"])
def test_other_classes_of_other_heads(name, tmp_path):
    for load in doors(name, tmp_path).values():
        model = load(num_classes=7)
        assert model.num_classes == 7 and load(num_classes=0).num_classes == 0
        assert model.state_dict()[f"{getattr(model, 'classifier', 'head')}.weight"].shape[0] == 7


def test_a_file_without_a_head_gets_one_where_classes_are_asked_for(tmp_path):
    torch.save(zoo.create_model("vit_nano", num_classes=0).state_dict(), tmp_path / "backbone.pth")
    model = zoo.create_model("vit_nano", num_classes=5, checkpoint_path=tmp_path / "backbone.pth")
    assert model.head.weight.shape[0] == 5
    with pytest.raises(ValueError, match=r"missing \(2\): head"):  # no random head that nobody asked for
        zoo.create_model("vit_nano", checkpoint_path=tmp_path / "backbone.pth")


@pytest.mark.parametrize("size", [16, (8, 12), 4])
def test_vit_at_other_sizes(size, tmp_path):
    for load in doors("vit_nano", tmp_path).values():
        model, original = load(img_size=size), load()
        expected = resample_abs_pos_embed(original.pos_embed, model.patch_embed.grid_size, num_prefix_tokens=1)
        torch.testing.assert_close(model.pos_embed, expected)
        assert model.eval()(torch.rand(1, 1, *model.config.image_shape)).shape == (1, 10)


@pytest.mark.parametrize("size", [16, (8, 12), 6])
def test_vim_at_other_sizes_keeps_the_row_of_its_class_token(size, tmp_path):
    for load in doors("vim_nano", tmp_path).values():
        model, original = load(img_size=size), load()
        table, middle = original.pos_embed, original.patch_embed.num_patches // 2
        patches = torch.cat([table[:, :middle], table[:, middle + 1 :]], dim=1)
        grid = model.patch_embed.grid_size
        expected = resample_abs_pos_embed(patches, grid, num_prefix_tokens=0)
        assert torch.equal(model.pos_embed[:, model.patch_embed.num_patches // 2], table[:, middle])
        torch.testing.assert_close(model.patch_tokens(model.pos_embed), expected)


def test_back_from_a_grid_that_is_no_square(tmp_path):
    """The folder's configuration says what the table's grid is; a file alone does not."""
    wide: Any = zoo.create_model("vit_nano", img_size=(8, 16))
    zoo.save_model(wide, tmp_path / "wide")
    model: Any = zoo.create_model(f"local-dir:{tmp_path / 'wide'}", img_size=(16, 8))
    table = wide.pos_embed[:, 1:].unflatten(1, (4, 8)).permute(0, 3, 1, 2)
    expected = F.interpolate(table, size=(8, 4), mode="bicubic", antialias=True).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(model.pos_embed[:, 1:], expected)
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"mismatched \(1\): pos_embed"):
        zoo.create_model("vit_nano", checkpoint_path=tmp_path / "wide.pth")


def test_efficientvit_at_other_sizes(tmp_path):
    small = {"img_size": 128, "dims": (16, 24, 32), "num_heads": (2, 3, 2), "depths": (1, 1, 1), "window": 7}
    model: Any = zoo.create_model("efficientvit_m0", **small)
    for table in (p for name, p in model.named_parameters() if name.endswith("attention_biases")):
        torch.nn.init.normal_(table)
    zoo.save_model(model, tmp_path)
    larger: Any = zoo.create_model(f"local-dir:{tmp_path}", img_size=256)
    for (name, ours), theirs in zip(larger.named_parameters(), model.parameters(), strict=True):
        if not name.endswith("attention_biases") or ours.shape == theirs.shape:
            assert torch.equal(ours, theirs), name
        else:
            old, new = (round(p.shape[1] ** 0.5) for p in (theirs, ours))
            grid = theirs.view(1, -1, old, old)
            expected = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True).flatten(2)[0]
            torch.testing.assert_close(ours, expected)
    assert any(ours.shape != theirs.shape for ours, theirs in zip(larger.parameters(), model.parameters(), strict=True))


def test_a_vit_of_timm_at_another_size(tmp_path):
    """timm's own resizing gives the same logits."""
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5}
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, **options).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    peer = timm.create_model("vit_tiny_patch16_224", img_size=64, **options).eval()
    peer.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(theirs.state_dict(), peer))
    ours: Any = zoo.create_model(
        "vit_tiny_patch16_224", dim=24, depth=1, num_heads=3, num_classes=5, img_size=64,
        checkpoint_path=tmp_path / "vit.pth",
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), peer(x), atol=1e-5, rtol=1e-5)


def test_feature_nets_take_files_of_any_classes(tmp_path):
    torch.save(zoo.create_model("shvit_nano", num_classes=3).state_dict(), tmp_path / "shvit.pth")
    net = zoo.create_model("shvit_nano", checkpoint_path=tmp_path / "shvit.pth", features_only=True)
    assert len(net(torch.rand(1, 1, 8, 8))) == len(net.feature_info)
