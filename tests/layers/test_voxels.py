"""Voxels: the hash against a dictionary, attention against a loop of windows, convolutions against torch's on the whole
grid, pillars against torch's attention, and what is traced against what runs."""

from __future__ import annotations

import math
from itertools import product as every
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.voxels import (
    CrossWindowInteraction,
    PillarPool,
    PointEncoder,
    ScatteredLinearAttention,
    Sites,
    SparseConv,
    SubmanifoldConv,
    distinct,
    windows,
)
from zoo.layers.voxels import sums as groups

SHAPE = (2, 3, 6, 5)  # clouds, z, y, x


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.fixture
def sites() -> Sites:
    """A third of the grid, in no order."""
    places = torch.tensor(list(every(*map(range, SHAPE))))
    return Sites(places[torch.randperm(len(places))[:60]], SHAPE)


def dense(x: Tensor, sites: Sites) -> Tensor:
    """(clouds, C, z, y, x) with zeros where nothing is."""
    grid = x.new_zeros(*sites.shape, x.shape[1])
    grid[tuple(sites.coordinates.T)] = x
    return grid.movedim(-1, 1)


def at(grid: Tensor, sites: Sites) -> Tensor:
    return grid.movedim(1, -1)[tuple(sites.coordinates.T)]


def test_the_hash_is_a_dictionary(sites):
    known = {tuple(place): row for row, place in enumerate(sites.coordinates.tolist())}
    asked = torch.tensor(list(every(*(range(-1, size + 1) for size in SHAPE))))  # beyond every edge too
    assert sites.find(asked).tolist() == [known.get(tuple(place), -1) for place in asked.tolist()]
    around = sites.neighbors((3, 1, 5))
    offsets = list(every((-1, 0, 1), (0,), range(-2, 3)))
    for row, (cloud, *place) in enumerate(sites.coordinates.tolist()):
        beside = [(cloud, *(a + b for a, b in zip(place, offset, strict=True))) for offset in offsets]
        assert around[row].tolist() == [known.get(other, -1) for other in beside]


def test_places_are_counted_once():
    places = torch.tensor([[1, 2, 5, 4], [0, 0, 0, 0], [1, 2, 5, 4], [0, 0, 0, 3], [0, 1, 0, 0]])
    there = torch.tensor([True, True, True, False, True])
    assert distinct(places, SHAPE, there).coordinates.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 2, 5, 4]]


def attention(dim: int = 8, heads: int = 2) -> ScatteredLinearAttention:
    return ScatteredLinearAttention(dim, heads).double()


def alone(layer: ScatteredLinearAttention, x: Tensor) -> Tensor:
    """One window by itself, with the weights of all pairs."""
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).unbind(1)
    scores = torch.einsum("nhd,mhd->hnm", q.relu(), k.relu())
    weights = scores / (scores.sum(-1, keepdim=True) + layer.eps)
    return layer.out(torch.einsum("hnm,mhd->nhd", weights, v).flatten(1))


@pytest.mark.parametrize("rows", [4096, 7])  # at a time
def test_attention_is_a_loop_over_windows(monkeypatch, rows):
    monkeypatch.setattr(groups, "ROWS", rows)
    layer, x = attention(), torch.randn(40, 8, dtype=torch.double)
    window = torch.randint(0, 6, (40,)).clamp(max=4)
    found = layer(x, window, 6)  # the last is empty
    for index in range(5):
        close(found[window == index], alone(layer, x[window == index]))


def test_attention_knows_no_order_and_no_other_window():
    layer, x, window = attention(), torch.randn(30, 8, dtype=torch.double), torch.arange(30) % 4
    found, order = layer(x, window, 4), torch.randperm(30)
    close(layer(x[order], window[order], 4), found[order])
    other = torch.where((window == 2)[:, None], torch.randn_like(x), x)
    close(layer(other, window, 4)[window != 2], found[window != 2])
    whole = layer(x, torch.zeros(30, dtype=torch.long), 1)
    close(whole, alone(layer, x))


def test_a_voxel_alone_reads_itself_and_no_key_reads_nothing():
    layer, x = attention(), torch.randn(20, 8, dtype=torch.double)
    layer.eps = 0.0
    q, k, v = layer.qkv(x).chunk(3, 1)
    heads = (q.relu() * k.relu()).view(20, 2, 4).sum(-1) > 0
    found = layer(x, torch.arange(20), 20)
    expected = layer.out(v)
    assert heads.all(1).any()
    close(found[heads.all(1)], expected[heads.all(1)])
    layer.eps = 1e-6
    close(layer(torch.zeros_like(x), torch.arange(20), 20), layer.out.bias.expand(20, -1))
    assert layer(x[:0], torch.zeros(0, dtype=torch.long), 4).shape == (0, 8)


def test_gradients_of_sums_and_products(monkeypatch):
    monkeypatch.setattr(groups, "ROWS", 3)
    a, b, matrices = (
        torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((5, 2, 2), (5, 2, 3), (3, 2, 2, 3))
    )
    group = torch.tensor([0, 2, 2, 0, 2])
    assert torch.autograd.gradcheck(lambda a, b: groups.sums(a, b, group, 3), (a, b))
    assert torch.autograd.gradcheck(lambda a, m: groups.product(a, m, group), (a, matrices))
    assert torch.autograd.gradgradcheck(lambda a, m: groups.product(a, m, group), (a, matrices))


def test_windows_are_of_all_heights(sites):
    window, count = windows(sites, 4)
    cloud, _, y, x = sites.coordinates.unbind(1)
    assert count == 2 * 2 * 2 and torch.equal(window, 4 * cloud + 2 * (y // 4) + x // 4)


def test_submanifold_convolutions_are_torchs_on_the_whole_grid(sites):
    layer, x = SubmanifoldConv(3, 4, (3, 1, 3), bias=True).double(), torch.randn(60, 3, dtype=torch.double)
    kernel = layer.linear.weight.view(4, 3, 1, 3, 3).movedim(-1, 1)
    close(layer(x, sites), at(F.conv3d(dense(x, sites), kernel, layer.linear.bias, padding=(1, 0, 1)), sites))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0))]
)
def test_convolutions_with_a_stride_reach_what_torchs_reach(sites, kernel, stride, padding):
    layer, x = SparseConv(3, 4, kernel, stride, padding).double(), torch.randn(60, 3, dtype=torch.double)
    weight = layer.linear.weight.view(4, *kernel, 3).movedim(-1, 1)
    found, grid = layer(x, sites), F.conv3d(dense(x, sites), weight, stride=stride, padding=padding)
    assert found.sites.shape == (2, *grid.shape[2:])
    close(dense(found.features, found.sites), grid)
    there = F.conv3d(dense(torch.ones_like(x[:, :1]), sites), torch.ones_like(weight[:1, :1]), None, stride, padding)
    assert len(found.sites) == (there > 0).sum()


def test_cross_window_interaction_written_out(sites):
    layer, x = CrossWindowInteraction(8, 4).double(), torch.randn(60, 8, dtype=torch.double)
    parts = []
    for conv, part in zip((layer.around, layer.along_x, layer.along_y), x.chunk(4, 1), strict=False):
        weight = conv.weight.T.reshape(2, 1, *conv.kernel)
        padding = tuple(size // 2 for size in conv.kernel)
        parts.append(at(F.conv3d(dense(part, sites), weight, padding=padding, groups=2), sites))
    assert [conv.kernel for conv in (layer.along_x, layer.along_y)] == [(1, 1, 5), (1, 5, 1)]
    close(layer(x, sites), x + torch.cat([*parts, x[:, 6:]], 1))


def test_pillars_are_pooled_by_attention(sites):
    layer, x = PillarPool(8, 4, 2).double(), torch.randn(60, 8, dtype=torch.double)
    found = layer(x, sites)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.double)
    state = {
        "in_proj_weight": torch.cat([part.weight for part in (layer.query, layer.key, layer.value)]),
        "in_proj_bias": torch.cat([part.bias for part in (layer.query, layer.key, layer.value)]),
        "out_proj.weight": layer.out.weight,
        "out_proj.bias": layer.out.bias,
    }
    theirs.load_state_dict(state)
    places = {(c, y, x) for c, _, y, x in sites.coordinates.tolist()}
    assert [(c, y, x) for c, _, y, x in found.sites.coordinates.tolist()] == sorted(places)
    for row, (cloud, _, y, place) in enumerate(found.sites.coordinates.tolist()):
        own = (sites.coordinates[:, [0, 2, 3]] == torch.tensor([cloud, y, place])).all(1)
        values, levels = x[own], sites.coordinates[own, 1]
        query = values.amax(0, keepdim=True)
        attended, _ = theirs(query, values + layer.height[levels], values)
        close(found.features[row], layer.norm(query + attended)[0])


def encoder() -> PointEncoder:
    layer = PointEncoder(4, 6, (0.5, 0.25, 1.0), (-1.0, -0.5, 0.0), (4, 4, 2)).double()
    for norm in (layer.first_norm, layer.second_norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return layer.eval()


def test_voxels_are_made_of_their_points():
    layer = encoder()
    points = torch.rand(2, 50, 4, dtype=torch.double) * torch.tensor([2.4, 1.2, 2.4, 1.0]) - torch.tensor(
        [1.2, 0.6, 0.2, 0.0]
    )
    points[0, 3, 3], points[1, 7, 0] = float("nan"), float("inf")
    held: dict[tuple[int, ...], list[Tensor]] = {}
    for cloud, own in enumerate(points):
        for point in own:
            steps = [(point[a].item() - layer.low[a]) / layer.voxel[a] for a in range(3)]
            place = [math.floor(step) if point.isfinite().all() else -1 for step in steps]
            if all(0 <= index < size for index, size in zip(place, layer.grid, strict=True)):
                held.setdefault((cloud, *reversed(place)), []).append(point)
    found = layer(points, 3)
    assert [tuple(place) for place in found.sites.coordinates.tolist()] == sorted(held)
    assert found.sites.shape == (2, 3, 4, 4)
    for row, place in enumerate(sorted(held)):
        own = torch.stack(held[place])
        center = torch.tensor([layer.low[a] + (place[3 - a] + 0.5) * layer.voxel[a] for a in range(3)]).double()
        described = torch.cat([own, own[:, :3] - own[:, :3].mean(0), own[:, :3] - center], 1)
        x = layer.first_norm(layer.first(described)).relu()
        x = torch.cat([x, x.amax(0).expand_as(x)], 1)
        close(found.features[row], layer.second_norm(layer.second(x)).relu().amax(0))


def test_a_cloud_without_points_is_an_error():
    points = torch.rand(3, 5, 4, dtype=torch.double) - 0.4
    points[1] = 9.0
    with pytest.raises(ValueError, match=r"must have a point inside the grid.*those of rows \[1\] have none among 5"):
        encoder()(points, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScatteredLinearAttention(8, 3), "num_heads must divide dim, got num_heads 3 and dim 8"),
        (lambda: CrossWindowInteraction(8, 3), "window even, 2 or more, got dim 8 and window 3"),
        (lambda: SubmanifoldConv(2, 2, (3, 2, 3)), r"kernel must be odd along z, y and x, got \(3, 2, 3\)"),
        (lambda: PillarPool(8, 2, 3), "num_heads must divide dim"),
        (lambda: PointEncoder(2, 6, (1, 1, 1), (0, 0, 0), (2, 2, 2)), "in_chans must be 3 or more"),
    ],
)
def test_what_cannot_work_says_the_rule(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_inputs_say_the_rule(sites):
    with pytest.raises(ValueError, match=r"x must be \(voxels, dim\) and window \(voxels,\), got \(3, 8\) and \(2,\)"):
        attention()(torch.randn(3, 8).double(), torch.zeros(2, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="a pillar has 2 heights at most, got a grid of 3"):
        PillarPool(8, 2, 2)(torch.randn(60, 8), sites)
