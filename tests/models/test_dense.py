"""Feature pyramids and UperNet over any backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo.layers.conv.pyramid import PyramidPooling, UperHead
from zoo.vision import Pyramid, UperNet

PATCHES: dict[str, Any] = {"patch_size": 4}
NETS: list[tuple[str, dict[str, Any]]] = [
    ("shvit_nano", {}), ("efficientvit_nano", {}), ("vim_nano", PATCHES | {"out_indices": [1, 2, 3, 5]}),
    ("vit_nano", PATCHES | {"out_indices": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), NETS)
def test_levels_say_their_sizes(name, options):
    net: Any = zoo.create_model(name, img_size=32, features_only=True, **options)
    for width in (16, None):
        pyramid = Pyramid(net, width)
        shapes = [tuple(m.shape[1:]) for m in pyramid(torch.randn(2, 1, 32, 32)).values()]
        levels = zip(pyramid.channels, pyramid.reductions, strict=True)
        assert shapes == [(width or channels, 32 / r, 32 / r) for channels, r in levels]


@pytest.mark.parametrize(("name", "options"), NETS[:3])
def test_segmentation_learns_where_things_are(name, options):
    net: Any = zoo.create_model(name, img_size=16, features_only=True, **options)
    model = UperNet(net, 2, dim=16)
    images = torch.randn(4, 1, 16, 16)
    targets = (images[:, 0, :, :1] > 0).long().expand(-1, -1, 16)  # rows by their first pixel
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters()) and losses[-1] < 0.8 * losses[0]
    assert model(images).shape == (4, 2, 16, 16)


def unit(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """A ConvNorm in eval mode, written out."""
    y = F.conv2d(x, layer.conv.weight, padding=layer.conv.weight.shape[2] // 2)
    y = (y - layer.bn.running_mean[:, None, None]) / (layer.bn.running_var[:, None, None] + 1e-5).sqrt()
    return (y * layer.bn.weight[:, None, None] + layer.bn.bias[:, None, None]).clamp(min=0)


def test_the_head_written_out():
    head: Any = UperHead((3, 4, 5), 6, 2).double().eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    big, middle, small = (
        torch.randn(1, c, s, s, dtype=torch.float64)
        for c, s in (
            (
                3,
                12,
            ),
            (4, 6),
            (5, 6),
        )
    )
    pooling: Any = head.context
    assert isinstance(pooling, PyramidPooling)
    context = [small]
    for cells, conv in zip((1, 2, 3, 6), pooling.reduce, strict=True):
        mean = small.unflatten(3, (cells, -1)).unflatten(2, (cells, -1)).mean((3, 5))
        context.append(F.interpolate(unit(conv, mean), (6, 6), mode="bilinear"))
    c = unit(pooling.fuse_all, torch.cat(context, 1))
    b = unit(head.lateral[1], middle) + c
    a = unit(head.lateral[0], big) + F.interpolate(b, (12, 12), mode="bilinear")
    levels = [unit(head.smooth[0], a), unit(head.smooth[1], b), c]
    joined = torch.cat([F.interpolate(y, (12, 12), mode="bilinear") for y in levels], 1)
    expected = F.conv2d(unit(head.fuse_all, joined), head.head.weight, head.head.bias)
    torch.testing.assert_close(head([big, middle, small]), expected)


def test_errors():
    net: Any = zoo.create_model("vim_nano", features_only=True, out_indices=2)
    with pytest.raises(ValueError, match="maps of one resolution must be 1 or 4, got 2: choose them by out_indices"):
        Pyramid(net)
