"""Images from files: predictions, and scores on folders of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import zoo
from zoo.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits as root/val/<class>/<image>.png."""
    root, found = tmp_path_factory.mktemp("digits"), load_digits()
    for index in range(40):
        label, pixels = int(found.target[index]), found.images[index]
        folder = root / "val" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9375).astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return zoo.save_model(zoo.create_model("simplenet_nano"), tmp_path_factory.mktemp("model"))


def test_images_are_prepared_as_the_model_says(digits, model):
    built: Any = zoo.create_model(f"local-dir:{model}").eval()
    paths = sorted(digits.glob("val/*/*.png"))[:3]
    found = zoo.predict(built.train(), paths, top_k=20)
    assert not built.training
    for path, classes in zip(paths, found, strict=True):
        pixels = torch.tensor(np.asarray(Image.open(path)), dtype=torch.float32)[None, None] / 255
        expected = built((pixels - built.config.mean[0]) / built.config.std[0]).softmax(-1)[0]
        assert [index for index, _ in classes] == expected.argsort(descending=True).tolist()
        torch.testing.assert_close(torch.tensor([p for _, p in classes]), expected.sort(descending=True).values)


@pytest.mark.parametrize("layout", ["splits", "classes"])
def test_eval_on_folders_agrees_with_predict(digits, model, layout, wide, capsys):
    paths = sorted(digits.glob("val/*/*.png"))
    best = zoo.predict(zoo.create_model(f"local-dir:{model}"), paths)
    classes = sorted(NAMES)  # a folder's label is its place in the alphabet
    right = [classes[top[0][0]] == path.parent.name for path, top in zip(paths, best, strict=True)]
    among = [path.parent.name in {classes[i] for i, _ in top} for path, top in zip(paths, best, strict=True)]
    assert main(["eval", str(model), "--images", str(digits if layout == "splits" else digits / "val")]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") == 3]
    printed = {row[1].strip(): row[2].strip() for row in rows}
    assert float(printed["val/acc1"]) == pytest.approx(sum(right) / 40, abs=1e-6)
    assert float(printed["val/acc5"]) == pytest.approx(sum(among) / 40, abs=1e-6)


@pytest.mark.parametrize("kind", ["lines", "list", "object", "imagenet"])
def test_predict_prints_labels(kind, digits, model, tmp_path, wide, capsys):
    contents = {
        "lines": "\n".join(NAMES) + "\n",
        "list": json.dumps(NAMES),
        "object": json.dumps({str(i): name for i, name in enumerate(NAMES)}),
        "imagenet": json.dumps({str(i): [f"n{i}", name] for i, name in enumerate(NAMES)}),
    }
    (tmp_path / "labels").write_text(contents[kind])
    image = next(digits.glob("val/*/*.png"))
    (((best, probability), *_),) = zoo.predict(zoo.create_model(f"local-dir:{model}"), [image])
    assert main(["predict", str(model), str(image), "--labels", str(tmp_path / "labels"), "--top-k", "2"]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") == 4]
    label = f"n{best} {NAMES[best]}" if kind == "imagenet" else NAMES[best]
    assert len(rows) == 2 and [cell.strip() for cell in rows[0][1:4]] == [str(best), label, f"{probability:.4f}"]


def test_named_models_take_a_file(digits, model, capsys):
    image = str(next(digits.glob("val/*/*.png")))
    assert main(["predict", "simplenet_nano", image, "--checkpoint", str(model / "model.safetensors")]) == 0
    assert image.rsplit("/", 1)[1] in capsys.readouterr().out.replace("\n", "")


def test_errors(digits, model, tmp_path, wide, capsys):
    image = str(next(digits.glob("val/*/*.png")))
    (tmp_path / "labels").write_text("one\ntwo")
    (tmp_path / "text.png").write_text("no image")
    zoo.save_model(zoo.create_model("mamba_nano"), tmp_path / "language")
    for arguments, message in (
        (["predict", str(model), str(tmp_path / "text.png")], "text.png is not an image that PIL can read"),
        (["predict", str(model), "missing.png"], "No such file or directory: 'missing.png'"),
        (["predict", str(model), image, "--labels", str(tmp_path / "labels")], "must name 10 classes, one each, got 2"),
        (["predict", str(model), image, "--top-k", "0"], "top_k must be at least 1, got 0"),
        (["predict", str(tmp_path / "language"), image], "is a model of language: `zoo generate"),
        (["predict", "simplenet_nan", image], "did you mean 'simplenet_nano'"),
        (["eval", str(model), "--images", str(tmp_path)], "class"),
        (["eval", str(tmp_path / "language"), "--images", str(digits)], "an image classifier, got Mamba"),
        (["eval", "digits_vit_nano"], "a recipe needs --checkpoint"),
        (["eval", str(model), "--images", str(digits), "--data.batch_size", "3"], "there is no recipe whose values"),
    ):
        assert main(arguments) == 2, arguments
        assert message in capsys.readouterr().err.replace("\n", " "), arguments
