"""How published networks see an image, as the authors' evaluation prepares it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torchvision.transforms import CenterCrop, Resize

import zoo

CROP = {  # name -> side, side before the crop, interpolation
    "vim_tiny": (224, 256, "bicubic"), "vim_base": (224, 256, "bicubic"), "mcunet_in0": (48, 54, "bilinear"),
    "mcunet_in3": (176, 201, "bilinear"), "mbv2_w035": (144, 164, "bilinear"), "proxyless_w03": (176, 201, "bilinear"),
    "vovnet27_slim": (224, 256, "bilinear"), "vovnet39a": (224, 256, "bilinear"), "vovnet57a": (224, 256, "bilinear"),
    "pcdarts_imagenet": (224, 256, "bilinear"), "simplenetv1_5m_m1": (224, 256, "bicubic"),
    "shvit_s4": (256, 292, "bicubic"), "ese_vovnet39b": (224, 256, "bicubic"),
}  # fmt: skip


def steps(name: str) -> tuple[Any, Any]:
    """Resizing and crop of timm's evaluation transform for a model."""
    model: Any = zoo.create_model(name, device="meta")
    resize, crop, *_ = create_transform(**resolve_model_data_config(model)).transforms  # type: ignore[union-attr,arg-type]
    return resize, crop


@pytest.mark.parametrize("name", CROP)
def test_resized_and_cropped(name):
    side, before, interpolation = CROP[name]
    resize, crop = steps(name)
    assert isinstance(resize, Resize) and isinstance(crop, CenterCrop)
    assert (resize.size, resize.interpolation.value) == (before, interpolation)
    assert tuple(crop.size) == (side, side) and before == math.floor(side * 256 / 224)


@pytest.mark.parametrize(("name", "side"), [("mcunet_vww0", 64), ("mcunet_vww1", 80), ("mcunet_vww2", 144)])
def test_nobody_is_cropped_out_of_visual_wake_words(name, side):
    resize, crop = steps(name)
    assert (tuple(resize.size), resize.interpolation.value) == ((side, side), "bilinear")
    assert tuple(crop.size) == (side, side)


def test_simplenets_statistics_move_as_the_authors_do():
    model = zoo.create_model("simplenet_nano")
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.05}


@pytest.mark.parametrize("name", ["vovnet_nano", "simplenet_nano", "lightcnn_nano", "shvit_nano", "mcunet_nano"])
def test_maps_of_odd_sizes_are_those_the_configuration_says(name):
    for shape in ((17, 23), (9, 12), (33, 31)):
        model: Any = zoo.create_model(name, img_size=shape).eval()
        maps = model.forward_intermediates(torch.randn(1, 1, *shape), intermediates_only=True)
        assert [tuple(found.shape[2:]) for found in maps] == model.config.map_shapes(*shape)
        assert model.pretrained_cfg["pool_size"] == maps[-1].shape[2:]


def test_maps_of_odd_sizes_are_timms():
    config: Any = zoo.create_model("ese_vovnet19b_dw", device="meta").config
    assert config.map_shapes(65, 65) == [(side, side) for side in (33, 17, 8, 4, 2)]
