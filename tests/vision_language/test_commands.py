"""`zoo generate --image` and `zoo predict`, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.train.data import PicturesDataModule
from zoo.train.data.pictures import MEAN, STD
from zoo.vision_language import IMAGE, answer, prepare_images


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return zoo.create_model("llava_nano").eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return zoo.save_model(model, tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_pixels_of_a_file_are_those_of_the_data(model, picture):
    pixels = prepare_images(model, [picture])
    assert pixels.shape == (1, 1, 24, 24)
    expected = (torch.from_numpy(np.asarray(Image.open(picture)) / np.float32(255)) - MEAN) / STD
    assert torch.equal(pixels[0, 0], expected)


def test_what_follows_an_image(model, folder, picture, capsys):
    said = answer(model, prepare_images(model, [picture]), f"{IMAGE}caption: ", zoo.load_tokenizer(folder), 8)
    options = ["--max-new-tokens", "8", "--temperature", "0"]
    for prompt in ("caption: ", f"{IMAGE}caption: ", ""):
        assert main(["generate", str(folder), "--image", str(picture), "--prompt", prompt, *options]) == 0
        assert capsys.readouterr().out.rstrip("\n") == f"{IMAGE}caption: {said[0]}".rstrip("\n")
    assert main(["predict", str(folder), str(picture), "--prompt", "where is the disc? "]) == 0
    assert "picture.png" in capsys.readouterr().out


def test_the_bundled_model_says_what_is_there(tmp_path, capsys):
    data = PicturesDataModule(test_samples=8)
    data.setup()
    source: Any = data.sources["test"]
    pixels = (source.images(torch.arange(8)) * STD + MEAN).mul(255).round().byte().numpy()
    files = [str(tmp_path / f"{index}.png") for index in range(8)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image[0]).save(file)
    captions = [scene.caption() for scene in source.scenes(torch.arange(8))]
    assert main(["predict", "llava_nano", *files]) == 0
    table = capsys.readouterr().out
    right = [caption in table for caption in captions]
    assert sum(right) >= 5, f"of {captions}:\n{table}"
    first = right.index(True)
    assert main(["generate", "llava_nano", "--image", files[first], "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip() == f"{IMAGE}caption: {captions[first]}"


def test_commands_that_lack_something(folder, picture, capsys):
    for arguments, error in (
        (["generate", str(folder), "--prompt", "caption: "], "--image FILE"),
        (
            ["generate", str(folder), "--image", str(picture), "--prompt", f"{IMAGE}{IMAGE}a"],
            "got 2 of them and 1 image",
        ),
        (["generate", str(folder), "--image", str(picture), "--prompt", f"see {IMAGE}"], "a text must follow"),
        (["generate", "transformer_nano", "--image", str(picture)], "image is of a vision-language model"),
        (["predict", "vit_nano", str(picture), "--prompt", "what"], "prompt is of a vision-language model"),
        (["predict", str(folder), str(picture), "--labels", str(picture)], "labels is of classifiers of images"),
        (["predict", str(folder), str(picture), "--skip-bad-images"], "skip-bad-images is of classifiers of images"),
        (
            ["generate", str(folder), "--image", str(picture), "--max-new-tokens", "0"],
            "max_new_tokens must be at least",
        ),
    ):
        assert main(arguments) == 2
        assert error in capsys.readouterr().err.replace("\n", " ")
