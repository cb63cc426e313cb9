"""The convolutional backbones against timm: same counts, same work, same numbers and maps from the same file."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from cases.names import by_kind

# name -> millions of multiply-accumulates at the configuration's size, to the rounding of the papers' tables
MEGA_MACS = {
    "efficientvit_m0": 79, "efficientvit_m1": 167, "efficientvit_m2": 201, "efficientvit_m3": 263,
    "efficientvit_m4": 299, "efficientvit_m5": 522, "shvit_s1": 241, "shvit_s2": 365, "shvit_s3": 601, "shvit_s4": 986,
    "vovnet39a": 7072, "vovnet57a": 8930, "ese_vovnet19b_slim_dw": 398, "ese_vovnet19b_dw": 1333,
    "ese_vovnet19b_slim": 1680, "ese_vovnet39b": 7074, "ese_vovnet57b": 11666, "ese_vovnet99b": 16488,
}  # fmt: skip
SMALLEST = ("efficientvit_m0", "shvit_s1", "vovnet39a", "ese_vovnet19b_slim_dw", "ese_vovnet19b_slim")  # of each kind


def macs(model: Any) -> float:
    """Multiply-accumulates of convolutions and matrix products for one image, on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, *model.config.image_shape, device="meta"))
    return counter.get_total_flops() / 2


def randomise(model: Any) -> Any:
    """Random statistics for the batch norms, and random numbers for what starts at zero or one."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 1.5), (module.weight, 0.5, 1.0),
                (module.bias, -0.3, 0.3),
            ):  # fmt: skip
                nn.init.uniform_(tensor, low, high)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", MEGA_MACS)
def test_same_count_same_work_same_preparation(name):
    with torch.device("meta"):
        theirs: Any = timm.create_model(name)
    ours: Any = zoo.create_model(name, device="meta").eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert round(macs(ours) / 1e6) == MEGA_MACS[name]
    resolve = timm.data.resolve_model_data_config
    authors = (
        {"interpolation": "bilinear"} if name.startswith("vovnet") else {}
    )  # of version 1, where timm has no weights
    assert resolve(ours) == resolve(theirs) | authors
    info = [(i["num_chs"], i["reduction"]) for i in theirs.feature_info]
    assert [(i["num_chs"], i["reduction"]) for i in ours.feature_info] == info
    for key in ("pool_size", "fixed_input_size", "num_classes"):
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key]


@pytest.mark.parametrize("name", by_kind(MEGA_MACS, SMALLEST))
def test_same_logits_and_maps_from_timms_file(name, tmp_path):
    theirs = randomise(timm.create_model(name, img_size=96) if "efficientvit" in name else timm.create_model(name))
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    ours: Any = zoo.create_model(
        name, checkpoint_path=tmp_path / "timm.safetensors", dtype=torch.float64, img_size=96
    ).eval()
    images = torch.randn(1, 3, 96, 80, dtype=torch.float64)
    with torch.no_grad():
        expected, maps = theirs.double().forward_intermediates(images)
        features, our_maps = ours.forward_intermediates(images)
        same(features, expected)
        same(our_maps, maps)
        same(ours.forward_head(features), theirs.forward_head(expected))
        same(ours.forward_head(features, pre_logits=True), theirs.forward_head(expected, pre_logits=True))
        logits = ours(images)
        assert logits.abs().mean() > 0.1
        same(ours.fuse()(images), logits)
    assert not [m for m in ours.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
