"""Deformable attention in images: torch's sampling level by level and point by point, and the mean over cameras."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.attention import CameraAttention, DeformableAttention

HEADS, POINTS, ANCHORS, DIM = 2, 4, 2, 6
SIZES = ((4, 5, 7), (2, 3, 7))  # height, width and bins of two levels


def made(lift: bool) -> tuple[DeformableAttention, Tensor, Tensor, list[Tensor], list[Tensor] | None]:
    """A layer with random weights, queries, anchors, features and depths; float64."""
    layer = DeformableAttention(DIM, HEADS, POINTS, 2, lift).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    queries = torch.randn(2, 3, DIM, dtype=torch.double)
    anchors = torch.rand(2, 3, ANCHORS, 3 if lift else 2, dtype=torch.double)
    features = [torch.randn(2, h, w, DIM, dtype=torch.double) for h, w, _ in SIZES]
    depths = [torch.randn(2, *size, dtype=torch.double).softmax(-1) for size in SIZES]
    return layer, queries, anchors, features, depths if lift else None


@pytest.mark.parametrize("lift", [True, False])
def test_written_out(lift):
    layer, queries, anchors, features, depths = made(lift)
    found, axes = layer(queries, anchors, features, depths), 3 if lift else 2
    expected = torch.zeros(2, 3, HEADS, DIM // HEADS, dtype=torch.double)
    offsets = layer.offsets(queries).view(2, 3, HEADS, 2, POINTS, 2)
    weights = layer.weights(queries).view(2, 3, HEADS, -1).softmax(-1).view(2, 3, HEADS, 2, POINTS)
    if layer.depth_offsets is not None:
        offsets = torch.cat([offsets, layer.depth_offsets(queries).view(2, 3, HEADS, 2, POINTS, 1)], -1)
    for level, (height, width, bins) in enumerate(SIZES):
        value = layer.value(features[level]).view(2, height, width, HEADS, -1)
        for b, q, h, p in torch.cartesian_prod(*map(torch.arange, (2, 3, HEADS, POINTS))).tolist():
            at = anchors[b, q, p % ANCHORS] + offsets[b, q, h, level, p] / torch.tensor([width, height, bins][:axes])
            volume = value[b, :, :, h].movedim(-1, 0)
            volume = volume if depths is None else torch.einsum("chw,hwd->cdhw", volume, depths[level][b])
            grid = (2 * at - 1).view(*(1,) * (axes + 1), axes)
            read = F.grid_sample(volume[None], grid, align_corners=False).flatten()
            expected[b, q, h] += weights[b, q, h, level, p] * read
    torch.testing.assert_close(found, layer.out(expected.flatten(2)), rtol=1e-10, atol=1e-10)


def test_at_first_heads_look_round_their_anchor():
    layer = DeformableAttention(8, 4, 2)
    offsets = layer.offsets(torch.randn(8)).view(4, 2, 2)
    way = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(offsets, torch.stack([way, 2 * way], 1), atol=1e-6, rtol=0)
    assert layer.depth_offsets is not None
    away = layer.depth_offsets(torch.randn(8)).view(4, 2)
    torch.testing.assert_close(away, torch.tensor([[0.5, 1.0], [0.5, 1.0], [-0.5, -1.0], [-0.5, -1.0]]))


def test_each_query_has_the_mean_of_the_cameras_that_see_it():
    layer = CameraAttention(DIM, HEADS, POINTS).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    queries = torch.randn(2, 5, DIM, dtype=torch.double)
    seen = torch.tensor([[3, 0, 1], [1, 3, -1]])  # 2 and 4 by none, 1 and 3 by both
    anchors = torch.rand(2, 3, ANCHORS, 3, dtype=torch.double)
    features = torch.randn(2, 2, 4, 5, DIM, dtype=torch.double)
    depths = torch.randn(2, 2, 4, 5, 7, dtype=torch.double).softmax(-1)
    found = layer(queries, seen, anchors, [features], [depths])
    sums = torch.zeros_like(queries)
    for camera, place in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        query = int(seen[camera, place])
        own = anchors[camera, place].expand(2, 1, -1, -1)
        read = layer.attention(queries[:, [query]], own, [features[:, camera]], [depths[:, camera]])
        sums[:, query] += read[:, 0] / (2 if query in (1, 3) else 1)
    torch.testing.assert_close(found, layer.out(sums))


def test_wrong_inputs_say_the_rule():
    layer, queries, anchors, features, depths = made(True)
    for images, levels in ((features[:1], depths), (features, None), (features, depths[:1] if depths else None)):
        with pytest.raises(ValueError, match="must be lists of 2 levels"):
            layer(queries, anchors, images, levels)
    for wrong in (anchors[..., :2], anchors.repeat(1, 1, 2, 1)[:, :, :3]):
        with pytest.raises(
            ValueError, match=r"anchors must have 3 coordinates, and as many of them as divide 4 points"
        ):
            layer(queries, wrong, features, depths)
    with pytest.raises(ValueError, match="num_heads must divide dim, got num_heads 4 and dim 6"):
        DeformableAttention(6, 4, 2)
