"""Classifiers of pixel sequences against their formulas written out pixel by pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from cases.long_conv import both_ways
from zoo.layers.conv import LongConvMixer
from zoo.train.optim import parameter_groups

NAMES = ["s4_pixel_nano", "longconv_pixel_nano"]


def randomised(name: str, **options: Any) -> Any:
    """A small model in eval mode and float64 whose norms have seen something."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, img_size=5, dim=6, depth=2, dtype=torch.float64, **options)
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.LayerNorm)):
            running = [module.running_mean, module.running_var] if isinstance(module, torch.nn.BatchNorm1d) else []
            for tensor in (module.weight.data, module.bias.data, *running):
                tensor.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval()


def norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    """A batch norm, or without statistics of its own a layer norm."""
    if f"{name}.running_mean" in p:
        mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    else:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def mixed(u: Tensor, mixer: Any) -> Tensor:
    """u (1, T, dim) through the convolutions with the taps of the past and of the future, GELU and a gated layer."""
    if isinstance(mixer, LongConvMixer):
        convolutions = [(*conv.taps().chunk(2), conv.D) for conv in mixer.convs]
    else:
        convolutions = [(*mixer.kernel(u.shape[1]), mixer.D)]
    y = F.gelu(torch.cat([both_ways(u, *convolution) for convolution in convolutions], dim=-1))
    value, gate = (y @ mixer.output_linear.weight.T + mixer.output_linear.bias).chunk(2, -1)
    return value * torch.sigmoid(gate)


@pytest.mark.parametrize(
    "options", [{}, {"prenorm": False, "in_chans": 3}, {"norm": "layer", "global_pool": "last"}], ids=str
)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_are_the_formulas(name, options):
    model = randomised(name, **options)
    p, image = model.state_dict(), torch.randn(1, model.config.in_chans, 5, 5, dtype=torch.float64)
    x = image.flatten(2).mT @ p["patch_embed.proj.weight"].flatten(1).T + p["patch_embed.proj.bias"]
    for i, block in enumerate(model.blocks):
        if model.config.prenorm:
            x = x + mixed(norm(x, p, f"blocks.{i}.before"), block.mixer)
        else:
            x = norm(x + mixed(x, block.mixer), p, f"blocks.{i}.after")
    x = norm(x, p, "norm") if model.config.prenorm else x
    pooled = x[:, -1] if options.get("global_pool") == "last" else x.mean(1)
    torch.testing.assert_close(model(image), pooled @ p["head.weight"].T + p["head.bias"], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_which_pixels_a_feature_depends_on(name, bidirectional):
    """All of them, or those above and to the left of it in its row, and itself."""
    taps = {"lam": 0.0} if name == "longconv_pixel_nano" else {}  # none of them is squashed to 0
    model = randomised(name, bidirectional=bidirectional, **taps)
    image = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    (features,) = model.forward_intermediates(image, indices=1, intermediates_only=True)
    (gradient,) = torch.autograd.grad(features[0, :, 2, 3].square().sum(), image)
    reached = torch.arange(25).view(5, 5) <= (24 if bidirectional else 2 * 5 + 3)
    assert torch.equal(gradient[0, 0].abs() > 1e-12, reached)


def test_batch_norm_of_training_is_over_images_and_pixels():
    model = randomised("s4_pixel_nano").train()
    x = model.blocks[0].before(torch.randn(3, 25, 6, dtype=torch.float64))
    weight, bias = model.blocks[0].before.weight, model.blocks[0].before.bias
    torch.testing.assert_close(x.mean((0, 1)), bias)
    torch.testing.assert_close(x.std((0, 1), correction=0), weight, atol=1e-4, rtol=1e-4)


def test_another_pooling_is_an_error_and_so_is_another_norm():
    model: Any = zoo.create_model("s4_pixel_nano")
    model.reset_classifier(3, "last")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.forward_head(model.forward_features(x)), model.head(model.forward_features(x)[:, -1]))
    with pytest.raises(ValueError, match=r"pooled by their mean \('avg'\) or its last \('last'\), not 'token'"):
        model.reset_classifier(3, "token")
    with pytest.raises(ValueError, match="norm must be one of batch, layer, got 'group'"):
        zoo.create_model("s4_pixel_nano", norm="group")


def test_taps_reach_over_the_image_and_have_a_rate_of_their_own():
    """``kernel_length`` None is one tap a pixel, of an image of any size."""
    model: Any = zoo.create_model("longconv_pixel_lra_pathx", device="meta", img_size=256)
    assert model.blocks[0].mixer.convs[0].kernel.shape == (2 * 256, 256 * 256)
    *_, slow = parameter_groups(model, lr=1e-2, weight_decay=0.1)
    assert slow["lr"] == 5e-4 and slow["weight_decay"] == 0
    assert {id(p) for p in slow["params"]} == {id(p) for key, p in model.named_parameters() if key.endswith("kernel")}
