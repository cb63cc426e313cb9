"""What `zoo predict` and `zoo generate` do with clips, volumes and texts, and what they say of a model of another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import zoo
from zoo.cli import main
from zoo.cli.doors import SERVED
from zoo.registry import TASKS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sizes(path: str) -> list[tuple[int, int]]:
    with Image.open(path) as file:
        return [frame.size for frame in ImageSequence.Iterator(file)]


def moving(path: str, frames: int = 12) -> None:
    """A clip of a bar that moves."""
    pictures = [np.zeros((24, 24), np.uint8) for _ in range(frames)]
    for index, picture in enumerate(pictures):
        picture[:, index : index + 4] = 255
    first, *rest = map(Image.fromarray, pictures)
    first.save(path, save_all=True, append_images=rest)


def said(arguments: list[str], capsys: Any, code: int = 2) -> str:
    assert main(arguments) == code, arguments
    captured = capsys.readouterr()
    return " ".join((captured.err if code else captured.out).split())


@pytest.mark.parametrize(
    ("arguments", "way"),
    [
        (
            ["predict", "transformer_nano", "a.png"],
            "transformer_nano is a model of language: `zoo generate",
        ),
        (["predict", "dit_nano", "a.png"], "`zoo generate dit_nano --output FILE.png` draws images"),
        (["predict", "video_dit_nano", "a.gif"], "`zoo generate video_dit_nano --output FILE.gif` draws clips"),
        (["predict", "maelre_nano", "a.npy"], "no command reads its inputs"),
        (["generate", "dit_nano", "--images", "2"], "`zoo generate dit_nano --output FILE.png` draws images"),
        (["generate", "cmd_nano"], "text needs a language model, got CMD; cmd_nano is a model of video-autoencoding"),
        (["chat", "vit_nano"], "`zoo predict vit_nano FILE` reads images"),
        (["generate", "m2_encoder_nano", "--image", "a.png"], "FILE --text TEXT --text TEXT` ranks texts about"),
    ],
)
def test_a_model_of_another_command(arguments, way, capsys):
    error = said(arguments, capsys)
    assert way in error and error.startswith(f"zoo {arguments[0]}: error: ")


def test_every_way_is_of_a_task():
    assert set(SERVED) <= set(TASKS)


def test_clips_are_drawn_as_they_move_and_read_again(capsys):
    draws = ["generate", "video_dit_nano", "--images", "1", "--class", "0"]
    assert "1 clips of 8 frames" in said([*draws, "--output", "v.gif"], capsys, 0)
    assert len(sizes("v.gif")) == 8 and set(sizes("v.gif")) == {(64, 64)}
    said([*draws, "--output", "v.png"], capsys, 0)
    assert sizes("v.png") == [(8 * 65 - 1, 64)]
    said(["generate", "video_dit_nano", "--images", "2", "--output", "two.gif"], capsys, 0)
    assert set(sizes("two.gif")) == {(129, 64)}
    assert "must end in .gif, .png" in said([*draws, "--output", "v.mp4"], capsys)
    assert "must end in .png" in said(["generate", "dit_nano", "--output", "v.gif"], capsys)
    for name in ("again.gif", "again.png"):
        assert "8 of 8" in said(["predict", "cmd_nano", "v.gif", "--output", name], capsys, 0)
    assert len(sizes("again.gif")) == 8 and sizes("again.gif")[0] == (129, 64)
    assert sizes("again.png") == [(9 * 65 - 1, 3 * 65 - 1)]
    assert "of clips must end in" in said(["predict", "cmd_nano", "v.gif", "--output", "again.wav"], capsys)


def test_a_clip_of_other_frames_is_read_evenly(capsys):
    from zoo.generative.clips import prepared

    model: Any = zoo.create_model("cmd_nano", pretrained=True).eval()
    frames = torch.arange(15.0)[:, None, None, None].expand(-1, 3, 16, 16) / 15
    clip = prepared(model, frames)
    steps = (clip[0, 0, :, 0, 0] * 0.251 + 0.106) * 15
    torch.testing.assert_close(steps, torch.arange(0.0, 15, 2), atol=1e-5, rtol=0)
    moving("c.gif")
    assert "8 of 12" in said(["predict", "cmd_nano", "c.gif"], capsys, 0)
    with pytest.raises(ValueError, match="clips of 1 or 3 channels, and the model has 2"):
        prepared(zoo.create_model("cmd_nano", in_chans=2, mean=(0.0,) * 2, std=(1.0,) * 2), frames)  # type: ignore[arg-type]


def test_motions_move_a_frame(capsys):
    figure = np.zeros((16, 16), np.uint8)
    figure[4:9, 4:9] = 255
    Image.fromarray(figure).save("f.png")
    moving("c.gif", 8)
    draws = ["generate", "cmd_motion_shapes", "--images", "3", "--output", "m.gif"]
    assert "give what is to move, --image FILE" in said(draws, capsys)
    assert "3 clips of 8 frames" in said([*draws, "--image", "f.png", "--image", "c.gif"], capsys, 0)
    assert len(sizes("m.gif")) == 8 and set(sizes("m.gif")) == {(3 * 65 - 1, 64)}
    assert "leave it out" in said(["generate", "dit_nano", "--image", "f.png", "--output", "m.png"], capsys)


def test_frames_of_a_gif_are_not_passed_over(capsys):
    moving("c.gif")
    told = said(["predict", "llava_nano", "c.gif", "--output", "told.png"], capsys, 0)
    assert "c.gif, frame 0 of 12" in told and "c.gif, frame 11 of 12" in told and told.count("of 12") == 8
    assert sizes("told.png")[0][0] == 4 * 200 + 8
    assert main(["predict", "vit_nano", "c.gif"]) == 0
    assert "c.gif has 12 frames: the first is read" in capsys.readouterr().err


def test_the_nearest_texts_of_a_picture(capsys):
    from zoo.train.data import PicturesDataModule
    from zoo.train.data.pictures import MEAN, STD

    data = PicturesDataModule(test_samples=4)
    data.setup()
    source: Any = data.sources["test"]
    pixels = (source.images(torch.arange(4)) * STD + MEAN).mul(255).round().byte().numpy()
    captions = [scene.caption() for scene in source.scenes(torch.arange(4))]
    options = [word for caption in captions for word in ("--text", caption)]
    first = []
    for index, image in enumerate(pixels):
        Image.fromarray(image[0]).save(f"{index}.png")
        assert main(["predict", "m2_encoder_nano", f"{index}.png", *options, "--output", "told.png"]) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if any(caption in line for caption in captions)]
        first.append(captions[index] in rows[0])
        assert len(rows) == 4
    assert sum(first) >= 3 and os.path.getsize("told.png") > 500
    assert "give some, --text TEXT" in said(["predict", "m2_encoder_nano", "0.png"], capsys)
    assert "--text is of a pair of encoders" in said(["predict", "vit_nano", "0.png", "--text", "a"], capsys)


def test_similarity_takes_texts():
    model: Any = zoo.create_model("m2_encoder_nano", pretrained=True).eval()
    images, texts = torch.randn(2, 1, 24, 24), ["a disc", "three digits and more"]
    ids = [[0, *text.encode()] for text in texts]
    tokens = torch.tensor([row + [255] * (max(map(len, ids)) - len(row)) for row in ids])
    torch.testing.assert_close(model.similarity(images, texts), model.similarity(images, tokens))
    with pytest.raises(ValueError, match=r"texts must be a list of texts, or tokens .* got 'a disc'"):
        model.similarity(images, "a disc")
    with pytest.raises(ValueError, match=r"reads texts by its tokenizer: give tokenizer=zoo.load_tokenizer"):
        zoo.create_model("m2_encoder_nano", text_vocab_size=300).tokens_of(texts)  # type: ignore[operator]
    with pytest.raises(ValueError, match="images must be floating point"):
        model.similarity(images.byte(), texts)


def test_parts_of_a_volume(capsys):
    from zoo.train.data import EllipsoidsDataModule

    data = EllipsoidsDataModule(test_samples=1)
    data.setup()
    volume, masks = data.sources["test"].fetch(torch.arange(1), 0)
    np.save("v.npy", volume[0, 0].numpy())
    for name in ("m.npy", "m.png"):
        assert "of the volume, %" in said(["predict", "revunet3d_nano", "v.npy", "--output", name], capsys, 0)
    found = torch.from_numpy(np.load("m.npy"))
    assert found.shape == masks[0].shape and found.dtype == torch.bool
    assert (found == masks[0].bool()).float().mean() > 0.95
    assert sizes("m.png") == [(8 * 65 - 1, 3 * 65 - 1)]
    np.save("flat.npy", np.zeros((16, 16)))
    np.save("odd.npy", np.zeros((15, 16, 16)))
    for file, error in (
        ("flat.npy", "must hold a volume (1, depth, height, width), as the model reads, got (16, 16)"),
        ("odd.npy", "multiples of 4"),
    ):
        assert error in said(["predict", "revunet3d_nano", file], capsys)
