"""Images drawn by generators, and files through a tokenizer, by the command line."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.generative import draw, picture, psnr
from zoo.images import open_image


def test_a_picture_of_many():
    images = torch.stack([torch.full((1, 2, 2), value) for value in (0.0, 0.5, 1.0)])
    array = np.asarray(picture(images, columns=2, enlarged=2))
    assert array.shape == (9, 9)
    assert (array[:4, :4] == 0).all() and (array[:4, 5:] == 128).all() and (array[5:, :4] == 255).all()
    assert (array[4] == 128).all() and (array[5:, 5:] == 128).all()  # the line, and no fourth image
    assert np.asarray(picture(torch.rand(1, 3, 4, 4), 1)).shape == (4, 4, 3)
    with pytest.raises(ValueError, match=r"images with 1 or 3 channels in columns, got \(1, 2, 4, 4\), 1"):
        picture(torch.rand(1, 2, 4, 4), 1)


def test_ratios_of_signal_and_noise():
    found = psnr(torch.zeros(2, 1, 4, 4), torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 1.0)]))
    torch.testing.assert_close(found, torch.tensor([20.0, 0.0]))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    for name, options in (("dit_nano", {"depth": 1}), ("axial_nano", {"outer_depth": 2, "inner_depth": 1, "dim": 16})):
        zoo.save_model(zoo.create_model(name, **options), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("name", "options"), [
    ("dit_nano", ["--class", "3", "--guidance", "1"]), ("axial_nano", []),
])  # fmt: skip
def test_generators_draw(name, options, folder, capsys):
    path = folder / "made.png"
    assert main(["generate", str(folder / name), "--output", str(path), "--images", "2", *options]) == 0
    assert "2 images" in capsys.readouterr().out
    assert open_image(path, "L").size == (2 * 64 + 1, 64)


def test_next_scale_draws_by_its_tokenizer():
    made = draw(zoo.create_model("next_scale_nano"), 2, classes=torch.tensor([1, 2]))
    assert made.shape == (2, 1, 8, 8) and 0 <= made.min() <= made.max() <= 1


def test_what_cannot_be_drawn(folder, capsys):
    output = ["--output", str(folder / "made.png")]
    for arguments, message in (
        ([str(folder / "dit_nano"), "--class", "10"], "class must be from 0 to 9, got 10"),
        ([str(folder / "dit_nano"), "--images", "0"], "images must be at least 1, got 0"),
        ([str(folder / "axial_nano"), "--class", "1"], "draws images without classes"),
        (["mamba2_nano"], "drawing needs a generator of images, got"),
    ):
        assert main(["generate", *arguments, *output]) == 2
        assert message in capsys.readouterr().err


def test_files_through_a_tokenizer(tmp_path, capsys):
    zoo.save_model(zoo.create_model("wetok_nano"), tmp_path / "model")
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png")
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "a.png"), "--output", str(tmp_path / "made.png")]
    assert main(arguments) == 0
    assert re.search(r"a\.png\s*.\s*16\s*.\s*128\s*.\s*-?\d+\.\d\d", capsys.readouterr().out)
    assert open_image(tmp_path / "made.png", "L").size == (64, 129)
    for other, rule in (
        ("lightcnn_nano", "volumes, worlds, points or cameras, got LightCNN"),
        ("next_scale_nano", "is a model of image-generation: `zoo generate"),
    ):
        zoo.save_model(zoo.create_model(other), tmp_path / other)
        assert main(["predict", str(tmp_path / other), *arguments[2:]]) == 2
        assert rule in capsys.readouterr().err


def test_a_generative_tokenizer_draws_thrice(tmp_path, capsys):
    model = zoo.create_model("wetok_nano", pretrained=True, generative=True)
    torch.nn.init.normal_(model.decoder.conv_in.weight.data[:, 8:])  # pyright: ignore
    zoo.save_model(model, tmp_path / "model")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "a.png"), "--output", str(tmp_path / "made.png")]
    said = []
    for _ in range(2):
        assert main(arguments) == 0
        said.append(capsys.readouterr().out)
    ratios = re.findall(r"-?\d+\.\d\d", said[0])
    assert said[0] == said[1] and len(set(ratios)) == 3
    assert open_image(tmp_path / "made.png", "L").size == (64, 4 * 65 - 1)  # the image and three draws
    assert main([*arguments[:-1], str(tmp_path / "made.gif")]) == 2
    assert "--output of images must end in .png" in capsys.readouterr().err
