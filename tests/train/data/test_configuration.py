"""Every data module can be written in YAML, as the recipes and the command line do."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import pytest

from zoo.train import data as package
from zoo.train.data import DataModule

MODULES = {
    "DigitsDataModule": "{batch_size: 32, augment: false}",
    "DigitLevelsDataModule": "{batch_size: 32}",
    "DigitViewsDataModule": "{batch_size: 8}",
    "DigitConceptDataModule": "{digit: 7, batch_size: 4}",
    "DigitStreamDataModule": "{batch_size: 8, tasks: 2, items: 32}",
    "TurnedDigitsDataModule": "{batch_size: 8}",
    "DigitTokensDataModule": "{batch_size: 8, augment: false}",
    "ArraysDataModule": "{batch_size: 8}",
    "ClipsDataModule": "{batch_size: 2}",
    "ScenesDataModule": "{batch_size: 8}",
    "EllipsoidsDataModule": "{batch_size: 2}",
    "EnvironmentDataModule": "{batch_size: 2, steps: 40, held_out: 40}",
    "CamerasDataModule": "{batch_size: 2}",
    "CloudsDataModule": "{batch_size: 2}",
    "MicrophonesDataModule": "{batch_size: 2}",
    "CaptionedPicturesDataModule": "{batch_size: 4}",
    "PicturesDataModule": "{batch_size: 2}",
    "SeriesDataModule": "{batch_size: 2}",
    "FiguresDataModule": "{batch_size: 2}",
    "FigureTokensDataModule": "{batch_size: 2}",
    "MovingFiguresDataModule": "{batch_size: 2, frames: 4}",
    "ShapesDataModule": "{batch_size: 2}",
    "DocumentationDataModule": "{seq_len: 32, windows: random}",
    "SourceCodeDataModule": "{most: 10, seq_len: 32}",
    "GrownSourceDataModule": "{merges: 5, most: 10, seq_len: 32}",
    "TextFilesDataModule": "{paths: [FILE], seq_len: 16, val_fraction: 0.2}",
    "ImageDataModule": (
        "{dataset: FakeData, dataset_kwargs: {size: 40, image_size: [3, 16, 16]}, mean: [0.5, 0.5, 0.5], "
        "pretrained_cfg: {input_size: [3, 16, 16]}, scale: [0.5, 1], batch_size: 8, random_erasing: 0.25}"
    ),
    "PreferencesDataModule": "{prompt_length: 4, answer_length: 4, train_pairs: 16, batch_size: 4}",
    "SyntheticDataModule": (
        "{task: {class_path: zoo.train.data.MQAR, init_args: {seq_len: 32, num_kv_pairs: 4}}, batch_size: 8}"
    ),
}


def test_every_module_is_covered():
    public = {getattr(package, name) for name in package.__all__}
    modules = {item.__name__ for item in public if isinstance(item, type) and issubclass(item, DataModule)}
    assert modules - {"DataModule", "TextDataModule"} == MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_module_from_yaml(name: str, tmp_path: Path):
    if name == "EnvironmentDataModule":
        pytest.importorskip("gymnasium", reason="environments are Gymnasium's: pip install 'efficient-zoo[worlds]'")
    file = tmp_path / "text.txt"
    file.write_text("to be or not to be\n" * 100)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    arguments = MODULES[name].replace("FILE", str(file))
    config = parser.parse_string(f"data: {{class_path: zoo.train.data.{name}, init_args: {arguments}}}")
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    module: DataModule = instantiate(config)["data"]
    inputs, targets = next(iter(module.train_dataloader()))
    several = list(targets.values()) if isinstance(targets, dict) else [targets]
    assert {len(part) for part in (inputs, *several)} == {module.batch_size}
    with pytest.raises((jsonargparse.ArgumentError, SystemExit)):
        parser.parse_string(f"data: {{class_path: zoo.train.data.{name}, init_args: {{batchsize: 3}}}}")
