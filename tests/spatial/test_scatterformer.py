"""ScatterFormer: the order of points, clouds apart, what is traced, the map of the ground, generated clouds, files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from zoo.cli import main
from zoo.layers.recompute import frozen_statistics
from zoo.layers.voxels import windows
from zoo.spatial import ScatterFormer, ScatterFormerConfig, read_points
from zoo.train.data import CloudsDataModule
from zoo.train.data.clouds import SHAPES


@pytest.fixture(scope="module")
def model() -> ScatterFormer:
    """The nano in float64, with statistics of some clouds."""
    torch.manual_seed(0)
    built = ScatterFormer(zoo.registry.lookup("scatterformer_nano").configure()).double()
    with torch.no_grad():
        for norm in (m for m in built.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)):
            norm.momentum = 1.0
        built.train()(clouds(8))
    return built.eval()


def clouds(count: int, points: int = 256) -> Tensor:
    return 0.4 * torch.randn(count, points, 3, dtype=torch.double)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_points_have_no_order_and_those_outside_do_not_count(model):
    points = clouds(2)
    found = model(points)
    close(model(points[:, torch.randperm(256)]), found)
    padding = torch.tensor([[9.0, 0.0, 0.0], [0.0, float("nan"), 0.0], [0.0, 0.0, -float("inf")]], dtype=torch.double)
    close(model(torch.cat([padding.expand(2, -1, -1), points], 1)), found)
    sparse = points.clone()
    sparse[0, 40:] = float("nan")
    close(model(sparse)[0], model(points[:1, :40])[0])
    close(model(sparse)[1], found[1])


@pytest.mark.slow
def test_what_is_traced_computes_the_same(model):
    """With rows that are no voxels, which nothing may read."""
    points = clouds(2, 60)
    points[1, 20:], points[1, 0] = float("inf"), -0.99  # where the grid begins there is a voxel too
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(points), model(points))
    plain = without_classes(model)
    torch.compiler.reset()
    close(torch.compile(plain, fullgraph=True, backend="eager")(points), plain(points))


def without_classes(model: ScatterFormer) -> ScatterFormer:
    return ScatterFormer(dataclasses.replace(model.config, num_classes=0, label_names=())).double().eval()


def test_without_classes_it_is_a_map_of_the_ground(model):
    plain = without_classes(model)
    assert not plain.load_state_dict(model.state_dict(), strict=False).missing_keys
    points = clouds(2)
    found, pillars = plain(points), model.forward_features(points)
    assert found.shape == (2, 32, 8, 8)
    filled = {(cloud, y, x) for cloud, _, y, x in pillars.sites.coordinates.tolist()}
    assert filled == {tuple(place) for place in found.abs().sum(1).nonzero().tolist()}
    for row, (cloud, _, y, x) in enumerate(pillars.sites.coordinates.tolist()):
        close(found[cloud, :, y, x], pillars.features[row])
    means = torch.stack([pillars.features[pillars.sites.coordinates[:, 0] == cloud].mean(0) for cloud in range(2)])
    close(model(points), model.head(means))


def test_a_layer_written_out(model):
    layer = model.stages[0][0]
    found = model.points(clouds(1), 17)
    x, sites = torch.randn(len(found.sites), 32, dtype=torch.double), found.sites
    u = layer.interaction_norm(x + layer.attention(layer.attention_norm(x), *windows(sites, 4)))
    w = layer.interaction(u, sites)
    hidden = layer.mlp_norm(w) @ layer.mlp[0].weight.T + layer.mlp[0].bias
    close(layer(x, sites), w + hidden.clamp(min=0) @ layer.mlp[2].weight.T + layer.mlp[2].bias)


@pytest.mark.parametrize(("name", "momentum"), [("scatterformer_nano", 0.1), ("scatterformer_waymo", 0.01)])
def test_how_much_a_batch_counts_in_the_statistics(name, momentum):
    model = zoo.create_model(name, device="meta")
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10 and {norm.momentum for norm in norms} == {momentum}
    with pytest.raises(ValueError, match=r"norm_momentum must be above 0 and at most 1, got 1\.5"):
        zoo.create_model(name, device="meta", norm_momentum=1.5)


def test_one_layer_of_the_published_size_has_134_048_parameters():
    """Attention of four matrices, three lines of weights, two matrices of the network, three norms."""
    with torch.device("meta"):
        model = ScatterFormer(ScatterFormerConfig())
    dim, quarter = 128, 32
    attention, lines = 4 * dim * dim + dim, quarter * (27 + 13 + 13)
    network = 2 * dim * 2 * dim + 3 * dim
    assert sum(p.numel() for p in model.stages[1][2].parameters()) == attention + lines + network + 6 * dim == 134_048
    assert model.pool.levels == 8


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.randn(2, 5, 4), r"points must be \(batch, points, in_chans 3\) floats, got \(2, 5, 4\)"),
        (torch.zeros(2, 5, 3, dtype=torch.long), "torch.int64"),
        (torch.full((1, 5, 3), 3.0), r"those of rows \[0\] have none among 5"),
        (torch.zeros(1, 0, 3), r"those of rows \[0\] have none among 0"),
    ],
)
def test_wrong_points_say_the_rule(points, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("scatterformer_nano")(points)


def test_generated_clouds():
    data = CloudsDataModule(noise=0.0, tilt=0.0, hidden=0.4, train_samples=4, val_samples=80, test_samples=4)
    data.setup()
    assert tuple(SHAPES) == zoo.registry.lookup("scatterformer_nano").configure().label_names
    points, kinds = data.sources["val"].fetch(torch.arange(80), 0)
    assert points.shape == (80, 256, 3) and set(kinds.tolist()) == set(range(8))
    radius = points.norm(dim=-1)
    assert radius.nan_to_num(0).amax(1).min() > 0.5 and radius.nan_to_num(0).max() <= 0.95 + 1e-6
    missing = radius.isnan().float().mean(1)
    assert missing.max() < 0.4 and missing.max() > 0.3 and missing.min() < 0.1
    again, _ = data.sources["val"].fetch(torch.tensor([7]), 3)
    assert torch.equal(again[0].nan_to_num(), points[7].nan_to_num())
    a, b, c = torch.rand(3, 500, dtype=torch.double)
    x, y, z = SHAPES["cube"](a, b, c)
    assert torch.allclose(torch.stack([x, y, z]).abs().amax(0), torch.ones(()).double())
    x, y, z = SHAPES["pyramid"](a, b, c)
    on_side = torch.isclose(torch.maximum(x.abs(), y.abs()), (1 - z) / 2)
    assert ((z == -1) | on_side).all() and (z == -1).any() and on_side.any()


def test_points_from_files_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = CloudsDataModule(train_samples=4, val_samples=4, test_samples=4)
    data.setup()
    points = data.sources["val"].fetch(torch.arange(1), 0)[0][0]
    np.save(tmp_path / "cloud.npy", points.numpy())
    kept = points[points.isfinite().all(1)]
    (tmp_path / "cloud.csv").write_text("\n".join(",".join(f"{v:.8f}" for v in p) for p in kept.tolist()))
    assert torch.equal(read_points(tmp_path / "cloud.npy", 3).nan_to_num(), points.nan_to_num())
    torch.testing.assert_close(read_points(tmp_path / "cloud.csv", 3), kept)
    zoo.save_model(zoo.create_model("scatterformer_nano"), tmp_path / "model")
    call = ["predict", str(tmp_path / "model"), str(tmp_path / "cloud.npy"), "--top-k", "2"]
    assert main([*call, "--output", str(tmp_path / "cloud.png")]) == 0
    told = capsys.readouterr().out
    assert sum(name in told for name in SHAPES) == 2 and (tmp_path / "cloud.png").stat().st_size > 5000
    np.save(tmp_path / "cloud.npy", 9 + points.numpy())
    assert main(call) == 2
    assert "must have a point inside the grid" in capsys.readouterr().err
    for name, content, rule in (
        ("text.csv", "1,2\n3,4\n", r"must hold points \(N, 3\), as the model reads, got \(2, 2\)"),
        ("words.csv", "a b c\n", "must hold numbers with commas or spaces"),
        ("empty.csv", "", "must hold points"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rule):
            read_points(tmp_path / name, 3)


def test_statistics_are_updated_once_with_checkpoints():
    """Recomputed layers see the voxels once more, their norms do not count them."""
    model = ScatterFormer(zoo.registry.lookup("scatterformer_nano").configure()).train()
    model.set_grad_checkpointing()
    points = clouds(4).float()
    model(points).square().mean().backward()
    norm = model.stages[0][0].mlp_norm
    assert norm.num_batches_tracked == 1
    with frozen_statistics(model):
        model(points)
    assert norm.num_batches_tracked == 1
