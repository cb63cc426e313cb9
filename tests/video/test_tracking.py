"""Following objects: generated clips, the losses and J written out, evaluation without memory, zoo predict on clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import zoo
from zoo.benchmarks.tracking import again, draw, followed, overlaps
from zoo.cli import main
from zoo.train.data import ClipsDataModule
from zoo.train.tasks import VideoSegmentation
from zoo.train.tasks.tracking import jaccard, prompt_of, tracking_loss
from zoo.video import Prompt, Tracked, draw_strip, read_clip


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, dict[str, Tensor]]:
    data = ClipsDataModule(frames=9)
    data.setup()
    return data.sources["test"].fetch(torch.arange(30), 0)


def test_clips_show_hide_and_show_again(batch: Any) -> None:
    clips, targets = batch
    masks = targets["masks"]
    assert clips.shape == (30, 9, 3, 64, 64) and clips.min() >= 0 and clips.max() <= 1 and masks.dtype == torch.bool
    areas = masks.flatten(2).sum(2)
    assert (areas[:, 0] > 100).all() and (areas[:, 2:-2] == 0).any(1).all()
    assert (areas[:, -1] > 0).float().mean() > 0.5
    middles = (masks[:, :1] * torch.arange(64)).flatten(2).sum(2) / areas[:, :1]
    later = (masks[:, 1:2] * torch.arange(64)).flatten(2).sum(2) / areas[:, 1:2]
    moved = (later - middles).abs()[(areas[:, 1] - areas[:, 0]).abs() < 0.1 * areas[:, 0]]  # nothing hid it yet
    assert moved.numel() > 5 and moved.max() < 7 and moved.median() > 1.5


def test_prompts_are_of_the_first_frame(batch: Any) -> None:
    _, targets = batch
    for mask, (point,), box in zip(targets["masks"][:, 0], targets["points"], targets["boxes"], strict=True):
        assert mask[int(point[1]), int(point[0])]
        rows, columns = mask.nonzero().unbind(1)
        assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_clips_are_functions_of_their_number(batch: Any) -> None:
    clips, targets = batch
    data = ClipsDataModule(frames=9, seed=5)
    data.setup()
    one, target = data.sources["test"].fetch(torch.tensor([7]), 0)
    assert torch.equal(one[0], clips[7]) and torch.equal(target["masks"][0], targets["masks"][7])
    first, second = (data.sources["train"].fetch(torch.tensor([7]), epoch)[0] for epoch in (0, 1))
    assert not torch.equal(first, second)
    plain, short = ClipsDataModule(frames=9), ClipsDataModule(frames=9, epoch_frames=[1, 1, 4])
    plain.setup()
    short.setup()
    for epoch, frames in ((0, 1), (2, 4), (3, 9)):
        cut, target = short.sources["train"].fetch(torch.tensor([7]), epoch)
        whole, known = plain.sources["train"].fetch(torch.tensor([7]), epoch)
        assert cut.shape[1] == target["masks"].shape[1] == frames
        assert torch.equal(cut, whole[:, :frames]) and torch.equal(target["masks"], known["masks"][:, :frames])
    assert short.sources["val"].fetch(torch.tensor([7]), 0)[0].shape[1] == 9
    with pytest.raises(ValueError, match="size must be >= 16, frames >= 6"):
        ClipsDataModule(frames=5)
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=r"epoch_frames must be in \[1, 9\]"):
            ClipsDataModule(frames=9, epoch_frames=[1, wrong])


def test_the_region_similarity() -> None:
    found, wanted = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)
    found[0, :2], wanted[0, 1:3], wanted[1, 0] = True, True, True
    torch.testing.assert_close(jaccard(found, wanted), torch.tensor([1 / 3, 0.0, 1.0]))


def test_the_loss_written_out() -> None:
    torch.manual_seed(0)
    low, ious, score = torch.randn(2, 3, 4, 4), torch.rand(2, 3), torch.randn(2)
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:6, 1:5] = True  # nothing is seen in the second clip
    found = Tracked(torch.zeros(2, 8, 8), score, ious.amax(1), low, ious)
    target, losses, crossed, overlaps = masks[0, 0].float(), [], [], []
    for logits in F.interpolate(low[:1], (8, 8), mode="bilinear")[0]:
        p = logits.sigmoid()
        right = torch.where(target == 1, p, 1 - p)
        weight = torch.where(target == 1, 0.25, 0.75)
        focal = (-weight * (1 - right) ** 2 * right.log()).mean()
        dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        losses.append(20 * focal + dice)
        crossed.append(5 * -right.log().mean() + dice / 2)
        overlaps.append(((logits > 0) & masks[0, 0]).sum() / ((logits > 0) | masks[0, 0]).sum())
    off = (ious[0] - torch.stack(overlaps)).abs().mean()
    of_sight = F.softplus(-score[0]) + F.softplus(score[1])
    torch.testing.assert_close(tracking_loss([found], masks), (torch.stack(losses).min() + off + of_sight) / 2)
    given = {"focal": 0.0, "cross_entropy": 5.0, "dice": 0.5, "iou": 3.0, "seen": 2.0}
    task = VideoSegmentation("efficienttam_nano", weights=given)
    wanted = (torch.stack(crossed).min() + 3 * off + 2 * of_sight) / 2
    torch.testing.assert_close(tracking_loss([found], masks, task.weights), wanted)
    for wrong in ({"cross": 1.0}, {"dice": -1.0}):
        with pytest.raises(ValueError, match=r"weights must be of focal, .* and 0 or more, got \{"):
            VideoSegmentation("efficienttam_nano", weights=wrong)


def test_the_task_evaluates_with_and_without_memory(batch: Any) -> None:
    clips, targets = batch[0][:2], {name: part[:2] for name, part in batch[1].items()}
    found = {}
    for remembers in (True, False):
        torch.manual_seed(0)
        task: Any = VideoSegmentation("efficienttam_nano", remembers=remembers, prompt="box")
        task.configure_model()
        task.log_dict = task.log = lambda *_, **__: None
        task.eval()
        with torch.no_grad():
            task.validation_step((clips, targets), 0)
        model, prompt = task.trained, Prompt(boxes=targets["boxes"])
        frames = model.normalised(clips)
        with torch.no_grad():
            if remembers:
                masks = model(frames, prompt)
                loss = task.training_step((clips, targets), 1)  # the second prompt in turn, a box
                torch.testing.assert_close(loss, tracking_loss(model.track(frames, prompt), targets["masks"]))
            else:
                masks = torch.stack([model(frame[:, None], prompt)[:, 0] for frame in frames.unbind(1)], 1)
        overlap = jaccard(masks > 0, targets["masks"])
        found[remembers] = masks
        for name, first in (("j", 1), ("j_late", 7)):
            assert task.means[name].compute().item() == pytest.approx(overlap[:, first:].mean().item(), rel=1e-5)
    assert torch.allclose(found[True][:, 0], found[False][:, 0], atol=1e-5)
    assert not torch.allclose(found[True][:, 1:], found[False][:, 1:], atol=1e-3)
    assert prompt_of(targets, "mask").mask is not None
    for wrong in ({"prompt": "text"}, {"prompts": ()}):
        with pytest.raises(ValueError, match="prompts must be of point, box, mask, got"):
            VideoSegmentation("efficienttam_nano", **wrong)


def test_what_is_seen_again_was_hidden() -> None:
    seen = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]]).bool()
    masks = torch.zeros(3, 6, 4, 4, dtype=torch.bool)
    masks[..., 1, 2] = seen
    assert again(masks).nonzero().tolist() == [[0, 3], [0, 5], [2, 1]]
    found = masks.clone()
    found[0, 3] = False
    found[:, 0] = True  # the first frame does not count
    assert overlaps(found, masks) == pytest.approx({"after the first frame": 14 / 15, "seen again": 2 / 3})


def test_two_strips_with_memory_above(batch: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = zoo.create_model("efficienttam_nano")
    index = draw(model, tmp_path / "strip.png")
    clips, targets = batch[0][:2], {name: part[:2] for name, part in batch[1].items()}
    prompt = prompt_of(targets, "point")
    with torch.no_grad():
        each = [model(model.normalised(clips[:, [time]]), prompt)[:, 0] > 0 for time in range(clips.shape[1])]
        assert torch.equal(followed(model, clips, prompt), model(model.normalised(clips), prompt) > 0)
    assert torch.equal(followed(model, clips, prompt, remembers=False), torch.stack(each, 1))
    drawn = np.asarray(Image.open(tmp_path / "strip.png"))
    assert index >= 0 and drawn.shape == (2 * 128 + 4, 8 * 128 + 7 * 2, 3)
    above, below = drawn[:128], drawn[-128:]
    assert np.array_equal(above[:, :128], below[:, :128])  # the frame with the prompt
    assert not np.array_equal(above, below)


def written(batch: Any, folder: Path, size: tuple[int, int] = (96, 48)) -> list[Image.Image]:
    """Frames of another shape than the model reads, as a GIF and as pictures in a folder."""
    arrays = (255 * batch[0][3, :4]).byte().movedim(1, -1).numpy()
    frames = [Image.fromarray(array).resize(size) for array in arrays]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / "frames" / f"{number:03}.png")
    return frames


def test_predict_follows_and_draws(batch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model: Any = zoo.create_model("efficienttam_nano").eval()
    saved = f"local-dir:{zoo.save_model(model, tmp_path / 'model')}"
    frames = written(batch, tmp_path)
    strip = tmp_path / "strip.png"
    for given in ("frames", "clip.gif"):
        asked = ["--point", "30,20", "--box", "6,3,96,40", "--output", str(strip)]
        assert main(["predict", saved, str(tmp_path / given), *asked]) == 0
        assert "frames 0, 1, 2, 3" in capsys.readouterr().out
    array = np.stack([np.asarray(frame.resize((64, 64), Image.Resampling.BILINEAR)) for frame in frames])
    pictures = torch.from_numpy(array).movedim(-1, 1).float() / 255
    read, own = read_clip([tmp_path / "frames"], 64)
    assert torch.equal(read, pictures) and own == (96, 48)
    point, box = torch.tensor([[[20.0, 80 / 3]]]), torch.tensor([[4.0, 4, 64, 160 / 3]])
    prompt = Prompt(point, torch.ones(1, 1, dtype=torch.long), box)
    with torch.no_grad():
        masks = model(model.normalised(pictures)[None], prompt)[0] > 0
    draw_strip(pictures, masks, prompt, tmp_path / "wanted.png")
    assert main(["predict", saved, str(tmp_path / "frames"), *asked]) == 0
    assert strip.read_bytes() == (tmp_path / "wanted.png").read_bytes()
    drawn = np.asarray(Image.open(strip))
    assert drawn.shape == (128, 4 * 128 + 3 * 2, 3)
    last = torch.from_numpy(drawn[::2, -128::2].copy()).permute(2, 0, 1) / 255
    touched = ((last - pictures[3]).abs() > 0.02).any(0)
    assert not (touched & ~masks[3]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frames"], "follows what --point X,Y or --box LEFT,TOP,RIGHT,BOTTOM names: give one"),
        (["frames", "--point", "96,3"], "point must be in the picture of 96 x 48 pixels, got 96,3"),
        (["frames", "--box", "1,2,30,49"], "box must be in the picture of 96 x 48 pixels"),
        (["frames", "--box", "30,2,3,40"], "right > left and bottom > top"),
        (["frames", "--point", "3"], "point takes 2 numbers with commas between them, got '3'"),
        (["frames", "--point", "3;4"], "point takes 2 numbers with commas between them, got '3;4'"),
        (["frames/000.png", "--point", "3,4"], "a clip takes two frames or more, got 1"),
        (["frames/000.png", "small.png", "--point", "3,4"], "the frames of a clip must have one size"),
        (["text.gif", "--point", "3,4"], "must be a picture or a GIF"),
    ],
)
def test_what_cannot_be_followed(
    batch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    written(batch, tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    (tmp_path / "text.gif").write_text("no picture")
    torch.manual_seed(0)
    saved = zoo.save_model(zoo.create_model("efficienttam_nano"), tmp_path / "model")
    paths = [a if a[0] == "-" or a[0].isdigit() else str(tmp_path / a) for a in arguments]
    assert main(["predict", f"local-dir:{saved}", *paths]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_prompts_are_of_video_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = zoo.save_model(zoo.create_model("lightcnn_nano"), tmp_path / "model")
    assert main(["predict", f"local-dir:{saved}", "a.png", "--box", "1,2,3,4"]) == 2
    assert "point and --box are of a video model, got LightCNN" in capsys.readouterr().err
