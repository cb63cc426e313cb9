"""DFA3D: where cameras look, rays that meet boxes, depths that are believed, generated scenes, images from files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.layers.attention import CameraAttention
from zoo.spatial import DFA3D, DFA3DConfig, Rig, ground
from zoo.train.data import CamerasDataModule
from zoo.train.data.cameras import rendered
from zoo.train.tasks.occupancy import occupancy_loss

RIG = Rig(cameras=4, height=1.5, view=90.0, image=(24, 32), near=1.0, far=11.0)


def test_where_points_are_seen():
    """The first camera looks along x, with y to its left; the second along y."""
    assert RIG.focal == pytest.approx(16)
    points = torch.tensor([[6.0, 0.0, 1.5], [6.0, 3.0, 1.5], [6.0, 0.0, 0.0], [-6.0, 0.0, 1.5], [6.0, 6.5, 1.5]])
    places, seen = RIG.project(points)
    torch.testing.assert_close(
        places[0, :3], torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.5, 0.5], [0.5, 0.5 + 4 / 24, 0.5]])
    )
    assert seen[0].tolist() == [True, True, True, False, False]
    torch.testing.assert_close(RIG.project(torch.tensor([-3.0, 6.0, 1.5]))[0][1], torch.tensor([0.25, 0.5, 0.5]))


def test_rays_lead_to_where_points_are_seen():
    rays = RIG.rays()
    assert rays.shape == (4, 24, 32, 3)
    points = 5.0 * rays + torch.tensor([0.0, 0.0, 1.5])
    for camera in range(4):
        places, seen = (part[camera] for part in RIG.project(points[camera]))
        assert seen.all()
        torch.testing.assert_close(places[..., 0], ((torch.arange(32) + 0.5) / 32).expand(24, -1))
        torch.testing.assert_close(places[..., 1], ((torch.arange(24) + 0.5) / 24)[:, None].expand(-1, 32))
        torch.testing.assert_close(places[..., 2], torch.full((24, 32), 0.4))
    torch.testing.assert_close(RIG.rays(2), rays.unflatten(1, (12, 2)).unflatten(3, (16, 2)).mean((2, 4)))


def test_rays_meet_what_is_nearest():
    """A box from x = 4 on, one behind it, the ground and the sky."""
    low = torch.tensor([[[4.0, -1.0, 0.0], [8.0, -1.0, 0.0]]], dtype=torch.double)
    high = low + torch.tensor([1.0, 2.0, 2.0], dtype=torch.double)
    colors = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.double)
    rays = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.4], [1.0, 0.0, -0.5], [1.0, 2.0, 0.1], [1.0, 0.0, 0.06]])
    seen, depth = rendered(low, high, colors, rays[None, None], 1.5)
    assert depth[0, 0, 0].tolist() == pytest.approx([4.0, math.inf, 3.0, math.inf, 4.0])
    torch.testing.assert_close(seen[0, 0, 0, 0], torch.tensor([0.7, 0.0, 0.0]).double())
    assert seen[0, 0, 0, 1:3].flatten().tolist() == pytest.approx([0.9] * 3 + [0.4] * 3)


def test_generated_scenes():
    data = CamerasDataModule(train_samples=4, val_samples=12, test_samples=4)
    data.setup()
    images, targets = data.sources["val"].fetch(torch.arange(12), 0)
    config = DFA3DConfig()
    assert images.shape[1:] == config.input_shape and config.rig == data.rig
    assert {name: getattr(config, name) for name in data.demands} == data.demands
    share = targets["occupancy"].mean((1, 2))
    assert (share > 0).all() and share.max() < 0.25
    assert targets["depth"].shape == (12, 4, 12, 16) and set(targets["depth"].unique().tolist()) <= set(range(-1, 20))
    again, other = data.sources["val"].fetch(torch.tensor([5]), 9)
    assert torch.equal(again[0], images[5]) and torch.equal(other["depth"][0], targets["depth"][5])


def test_occupied_cells_are_seen_at_their_depth():
    """The pixel that sees the front of a box has the depth of the point that projects there."""
    data = CamerasDataModule(train_samples=1, val_samples=1, test_samples=1)
    low, high = torch.tensor([[[5.0, -1.0, 0.0]]]).double(), torch.tensor([[[6.0, 1.0, 3.0]]]).double()
    _, depth = rendered(low, high, torch.ones(1, 1, 3).double(), data.rig.rays(2), data.rig.height)
    place, seen = data.rig.project(torch.tensor([5.0, 0.1, 1.4]))
    u, v, d = place[0].tolist()
    assert seen[0] and depth[0, 0, int(v * 12), int(u * 16)].item() == pytest.approx(data.rig.near + 10 * d)


@pytest.fixture(scope="module")
def model() -> DFA3D:
    torch.manual_seed(0)
    built = DFA3D(DFA3DConfig()).double().eval()
    for parameter in built.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return built


def test_the_cells_that_a_camera_sees(model):
    places, inside = model.config.rig.project(ground(8.0, 16, 4, 2.0))
    for camera in range(4):
        seen = model.seen[camera][model.seen[camera] >= 0]
        assert seen.tolist() == inside[camera].any(1).nonzero().flatten().tolist()
        torch.testing.assert_close(model.anchors[camera, : len(seen)], places[camera, seen].to(model.anchors))
    assert set(model.seen.flatten().tolist()) >= set(range(256))


def test_a_depth_that_is_given_is_believed(model):
    images = torch.rand(2, 4, 3, 24, 32, dtype=torch.double)
    found, logits = model(images, return_depth=True)
    assert found.shape == (2, 16, 16) and logits.shape == (2, 4, 12, 16, 20)
    torch.testing.assert_close(model(images, logits.softmax(-1)), found)
    nowhere = torch.zeros_like(logits)
    dark = model(torch.rand_like(images), nowhere)
    torch.testing.assert_close(model(images, nowhere), dark)  # nothing is read of either
    assert (model(images) - dark).abs().max() > 1e-3


def test_without_lifting_depths_are_not_read():
    flat = DFA3D(DFA3DConfig(lift=False)).eval()
    images = torch.rand(1, 4, 3, 24, 32)
    assert torch.equal(flat(images), flat(images, torch.zeros(1, 4, 12, 16, 20)))
    assert flat.anchors.shape[-1] == 2 and not any("depth_offsets" in name for name, _ in flat.named_parameters())


def test_attention_to_cameras_of_the_published_size_has_197_376_parameters():
    """Offsets of 64 points in the plane and in depth, their weights, values and the output."""
    assert sum(p.numel() for p in CameraAttention(256, 8, 8).parameters()) == 197_376


def test_the_loss_written_out():
    logits, depth = torch.randn(2, 3, 3), torch.randn(2, 1, 2, 2, 5)
    occupancy, bins = (torch.rand(2, 3, 3) > 0.5).float(), torch.tensor([[[[0, 4], [-1, 2]]], [[[1, -1], [-1, -1]]]])
    p = logits.sigmoid()
    expected = -(occupancy * p.log() + (1 - occupancy) * (1 - p).log()).mean()
    picked = [
        depth.log_softmax(-1)[b, 0, i, j, bins[b, 0, i, j]] for b, i, j in ((0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0))
    ]
    targets = {"occupancy": occupancy, "depth": bins}
    torch.testing.assert_close(occupancy_loss(logits, depth, targets, 0.0), expected)
    torch.testing.assert_close(occupancy_loss(logits, depth, targets, 0.5), expected - 0.5 * sum(picked) / 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": (23, 32)}, "img_size must be two even numbers"),
        ({"far": 0.5}, "far above near"),
        ({"num_points": 6}, "num_points a multiple of num_heights"),
        ({"view_angle": 180.0}, "view_angle must be between 0 and 180"),
    ],
)
def test_what_cannot_work_says_the_rule(change, message):
    with pytest.raises(ValueError, match=message):
        DFA3DConfig(**change)


def test_images_from_files_and_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    zoo.save_model(zoo.create_model("dfa3d_nano"), tmp_path / "model")
    files = []
    for camera in range(4):
        files.append(str(tmp_path / f"{camera}.png"))
        Image.new("RGB", (32, 24), (40 * camera, 90, 120)).save(files[-1])
    call = ["predict", str(tmp_path / "model"), *files]
    assert main([*call, "--top-k", "3", "--output", str(tmp_path / "map.png")]) == 0
    assert "of 256 cells" in capsys.readouterr().out and (tmp_path / "map.png").stat().st_size > 5000
    assert main(call[:-1]) == 2
    assert "an image of each of the 4 cameras, got 3" in capsys.readouterr().err
    Image.new("RGB", (64, 48)).save(files[0])
    assert main(call) == 2
    assert "must be an image of (24, 32) pixels, height and width, got (48, 64)" in capsys.readouterr().err
