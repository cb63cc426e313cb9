"""A model carries the preparation and the class names that it was trained with, to every command that uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli import main
from zoo.train.data import ImageDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),  # LightningCLI's own calls
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
COLOURS = {"azure": (0, 127, 255), "brown": (150, 75, 0), "coral": (255, 127, 80)}
RECIPE = """
model: {class_path: zoo.train.tasks.ImageClassification, init_args: {model: vit_nano, lr: 3.0e-3,
  model_args: {in_chans: 3, img_size: 16, patch_size: 8, num_classes: 3, depth: 1}}}
data: {class_path: zoo.train.data.ImageDataModule, init_args: {root: ROOT, img_size: 16, batch_size: 8,
  val_split: test, mean: [0.9, 0.2, 0.4], std: [0.3, 0.5, 0.7], crop_pct: 0.5, interpolation: bilinear}}
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}
throughput: {count_flops: false}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy coloured images as root/{train,test}/<colour>/<image>.png."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 6)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 120, (24, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def scores(output: str) -> dict[str, float]:
    rows = [line.split("│") for line in output.splitlines() if "val/" in line]
    return {row[1].strip(): float(row[2]) for row in rows}


def test_a_trained_folder_scores_the_same_everywhere(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.replace("ROOT", str(root)))
    assert main(["train", str(recipe), "--output", str(run)]) == 0
    capsys.readouterr()
    assert main(["eval", str(recipe), "--checkpoint", str(run)]) == 0
    expected = scores(capsys.readouterr().out)
    assert expected["val/acc1"] > 0.34, "better than chance"
    assert main(["eval", str(run / "model"), "--images", str(root / "test")]) == 0
    assert scores(capsys.readouterr().out) == pytest.approx(expected, rel=1e-5)

    files = sorted((root / "test").glob("*/*.png"))
    assert main(["predict", str(run / "model"), *map(str, files), "--top-k", "1"]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") == 4]
    right = [row[2].strip() == file.parent.name for row, file in zip(rows, files, strict=True)]
    assert sum(right) / len(files) == pytest.approx(expected["val/acc1"], abs=1e-6)


QUICK = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--throughput.count_flops=false"]
TINY = ["--model.model=vit_nano", "--model.model_args={depth: 1, img_size: 16, in_chans: 3}", *QUICK]


def test_a_folder_of_classes_is_enough(root, tmp_path, capsys):
    """No splits, fewer images than a batch, sizes from the model, classes from the folders."""
    assert main(["train", "images", "--data.root", str(root / "train"), "--output", str(tmp_path), *TINY]) == 0
    model = zoo.create_model(f"local-dir:{tmp_path / 'model'}")
    assert model.config.num_classes == 3 and model.config.label_names == tuple(COLOURS)
    assert "val/acc1" in capsys.readouterr().out
    assert main(["eval", "images", "--data.root", str(root / "train"), "--checkpoint", str(tmp_path / "model")]) == 0


def test_the_recipe_as_it_is(root, tmp_path):
    """An epoch of the model that the recipe names; what the data say of the size is what the model is built for."""
    more = ["--data.in_chans=1", "--data.val_split=test"]
    assert main(["train", "images", "--data.root", str(root), "--output", str(tmp_path), *QUICK, *more]) == 0
    assert zoo.create_model(f"local-dir:{tmp_path / 'model'}").pretrained_cfg["input_size"] == (1, 64, 64)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.model_args.num_classes=10"], "the model has num_classes 10, the data have num_classes 3"),
        (["--data.in_chans=1"], "the model has in_chans 3, the data have in_chans 1"),
        (["--data.img_size=32"], "the model has img_size 16, the data have img_size 32"),
        (["--data.root=nowhere"], "nowhere, which does not exist"),
    ],
)
def test_a_contradiction_is_a_line_before_training(root, tmp_path, capsys, more, message):
    assert main(["train", "images", f"--data.root={root}", f"--output={tmp_path}", *TINY, *more]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0]


def test_an_evaluated_model_keeps_its_classes(root, tmp_path, capsys):
    zoo.save_model(zoo.create_model("vit_nano", num_classes=4, in_chans=3, img_size=16), tmp_path)
    assert main(["eval", "images", f"--data.root={root}", f"--checkpoint={tmp_path}"]) == 2
    assert "the model has num_classes 4, the data have num_classes 3" in capsys.readouterr().err


def test_images_are_as_high_and_wide_as_the_model_wants(root):
    model = zoo.create_model("shvit_nano", img_size=(8, 16), in_chans=3, num_classes=3)
    data = ImageDataModule(root=str(root), pretrained_cfg=model.pretrained_cfg, batch_size=4)
    assert data.img_size == (8, 16)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))[0].shape[1:] == (3, 8, 16)


def test_names_go_with_their_classifier(tmp_path):
    named = zoo.create_model("vit_nano", num_classes=2, label_names=("cat", "dog"))
    loaded = zoo.create_model(f"local-dir:{zoo.save_model(named, tmp_path)}")
    assert loaded.pretrained_cfg["label_names"] == ("cat", "dog")
    assert zoo.create_model("vit_nano", num_classes=3, label_names=("cat",)).pretrained_cfg["label_names"] is None
    loaded.reset_classifier(2)
    assert loaded.pretrained_cfg["label_names"] is None, "a fresh classifier has other classes"
