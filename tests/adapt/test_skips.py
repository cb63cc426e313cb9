"""SCEdit: tuners on a U-Net's skip connections; sizes of a published network, what has gradients, and its scale."""

from __future__ import annotations

import pytest
import torch
from adapt.test_contract import built
from torch import nn

import zoo
from zoo.layers.adapt import placed
from zoo.layers.adapt.skips import SkipTuner

DIFFUSION_1_5 = {"dims": (320, 640, 1280, 1280), "depths": (1, 1, 1, 0), "mid_depth": 1, "head_dim": 40}


def test_sizes_of_stable_diffusion():
    """Twelve skips of 2 c^2 + 2 c numbers, 19.68 M: the docs of the authors' tuner library, by hand."""
    model = zoo.create_model("sdxl_unet", device="meta", context_dim=768, pooled_dim=None, **DIFFUSION_1_5)
    with torch.device("meta"):
        zoo.adapt(model, "scedit")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 19_680_000
    widths = [tuner.channels for tuner in placed(model).values()]
    assert widths == [1280] * 5 + [640] * 3 + [320] * 4


def test_a_tuner_by_hand_and_its_scale():
    class Block(nn.Module):
        def forward(self, x, time):
            return x * time

    block = SkipTuner(Block(), 3, 2, 0.5, torch.zeros(1, dtype=torch.float64))
    x, time = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.tensor(3.0)
    assert torch.equal(block(x, time), x * time)
    nn.init.normal_(block.up.weight)
    nn.init.normal_(block.up.bias)
    found = block(x, time)
    assert torch.equal(found[:, :5], 3 * x[:, :5])
    pixel = x[1, 5:, 2, 3]
    inner = nn.functional.gelu(block.down.weight[..., 0, 0] @ pixel + block.down.bias)
    added = block.up.weight[..., 0, 0] @ inner + block.up.bias
    torch.testing.assert_close(found[1, 5:, 2, 3], 3 * (pixel + 0.5 * added))
    block.scale = 0.0
    assert torch.equal(block(x, time), x * time)


def test_the_way_down_is_not_differentiated():
    model, seen = zoo.adapt(built("unet_nano"), "scedit"), {}
    parts = {"down": model.down_blocks[0].resnets[0], "middle": model.mid_block, "up": model.up_blocks[0].resnets[0]}
    for name, module in parts.items():
        module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: y.requires_grad}))
    model(torch.randn(2, 1, 8, 8, dtype=torch.float64))
    assert seen == {"down": False, "middle": False, "up": True}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformer_nano", {}, "scedit takes a U-Net of zoo.generative, got "),
        ("unet_nano", {"targets": ["*.conv1"]}, "scedit tunes all skip connections, got targets"),
        ("unet_nano", {"ratio": 0.0}, "ratio must be above 0 and scale finite"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.adapt(built(name), "scedit", **options)
