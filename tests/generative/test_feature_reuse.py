"""EfficientVLA's action head: computing every step is the plain sampler, and reused steps are as they are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.generative import FeatureReuse
from zoo.generative.diffusion import waves
from zoo.generative.dit import TIME_SCALE, TIME_WAVES
from zoo.kernels.flops import flop_counter


@pytest.fixture(scope="module")
def model() -> Any:
    """With gates that are open."""
    torch.manual_seed(0)
    made: Any = zoo.create_model("dit_nano", depth=2, dtype=torch.float64).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return made


def sampled(model: Any, steps: int, shortcut: Any = None) -> Tensor:
    classes, generator = torch.tensor([3, 5]), torch.Generator().manual_seed(1)
    return model.sample(2, classes=classes, steps=steps, guidance=1.0, shortcut=shortcut, generator=generator)


def test_computing_every_step_is_the_plain_sampler_bit_for_bit(model):
    assert torch.equal(sampled(model, 4, FeatureReuse(every=1)), sampled(model, 4))
    assert torch.equal(sampled(model, 4, FeatureReuse(every=3, first=4)), sampled(model, 4))
    assert not torch.allclose(sampled(model, 4, FeatureReuse(every=2)), sampled(model, 4))


@torch.no_grad()
def test_reused_steps_written_out(model):
    """Outputs of branches stay, residual stream and gates do not."""
    found, made, steps = sampled(model, 5, FeatureReuse(every=3)), {}, 5
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=generator)
    classes = torch.tensor([3, 5, model.config.num_classes, model.config.num_classes])
    for step in range(steps):
        both, t = torch.cat([x, x]), torch.full((4,), 1 - step / steps, dtype=torch.float64)
        tokens = model.patch_embed(both).flatten(2).mT + model.positions
        c = model.time(waves(TIME_SCALE * t, TIME_WAVES)) + model.classes(classes)
        for index, block in enumerate(model.blocks):
            b1, s1, g1, b2, s2, g2 = block.modulation(F.silu(c))[:, None].chunk(6, -1)
            if step % 3 == 0:
                made[index, 1] = block.attn((1 + s1) * block.norm1(tokens) + b1)
            tokens = tokens + g1 * made[index, 1]
            if step % 3 == 0:
                made[index, 2] = block.mlp((1 + s2) * block.norm2(tokens) + b2)
            tokens = tokens + g2 * made[index, 2]
        given, free = F.fold(model.head(tokens, c).mT, (8, 8), 2, stride=2).chunk(2)
        x = x - (2 * given - free) / steps
    torch.testing.assert_close(found, x, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("steps", "every", "first", "computed"), [(10, 5, 0, 2), (11, 5, 0, 3), (10, 5, 2, 4)])
def test_steps_that_compute(model, steps, every, first, computed):
    calls = []
    handle = model.blocks[0].mlp[0].register_forward_hook(lambda *_: calls.append(1))
    sampled(model, steps, FeatureReuse(every=every, first=first))
    handle.remove()
    assert len(calls) == computed
    with flop_counter(display=False) as plain:
        sampled(model, steps)
    with flop_counter(display=False) as reused:
        sampled(model, steps, FeatureReuse(every=every, first=first, parts=("mlp",)))
    c = model.config
    saved = 2 * 2 * 4 * 16 * c.dim * int(c.dim * c.mlp_ratio) * c.depth  # two products over 4 images of 16 tokens
    assert plain.get_total_flops() - reused.get_total_flops() == (steps - computed) * saved


def test_what_cannot_be_reused(model):
    for options, error in (
        ({"every": 0}, "every must be at least 1"),
        ({"first": -1}, "first at least 0"),
        ({"parts": ()}, r"parts must be some of attn and mlp, got \(\)"),
        ({"parts": ("norm",)}, "parts must be some of attn and mlp"),
    ):
        with pytest.raises(ValueError, match=error):
            FeatureReuse(**options)
    unet: Any = zoo.create_model("unet_nano")
    with pytest.raises(ValueError, match="features of adaptive blocks are taken again, got UNet: take a DiT"):
        unet.sample(1, steps=2, shortcut=FeatureReuse())
