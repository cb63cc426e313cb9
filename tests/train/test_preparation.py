"""A model carries the preparation and the class names that it was trained with, to every command that uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli import main

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
    assert 0.34 < expected["val/acc1"] < 1, "neither chance nor certainty: the preparation matters"
    assert main(["eval", str(run / "model"), "--images", str(root / "test")]) == 0
    assert scores(capsys.readouterr().out) == pytest.approx(expected, rel=1e-5)

    files = sorted((root / "test").glob("*/*.png"))
    assert main(["predict", str(run / "model"), *map(str, files), "--top-k", "1"]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") == 4]
    right = [row[2].strip() == file.parent.name for row, file in zip(rows, files, strict=True)]
    assert sum(right) / len(files) == pytest.approx(expected["val/acc1"], abs=1e-6)


def test_names_go_with_their_classifier(tmp_path):
    named = zoo.create_model("vit_nano", num_classes=2, label_names=("cat", "dog"))
    loaded = zoo.create_model(f"local-dir:{zoo.save_model(named, tmp_path)}")
    assert loaded.pretrained_cfg["label_names"] == ("cat", "dog")
    assert zoo.create_model("vit_nano", num_classes=3, label_names=("cat",)).pretrained_cfg["label_names"] is None
    loaded.reset_classifier(2)
    assert loaded.pretrained_cfg["label_names"] is None, "a fresh classifier has other classes"
