"""No door runs the code that a file carries: evaluation, resuming, prediction, export, conversion, a plain Trainer."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from zoo.cli import main
from zoo.train.data import DigitsDataModule
from zoo.train.run_folder import configuration
from zoo.train.tasks import ImageClassification
from zoo.train.trust import read_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),  # LightningCLI's own calls
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Evil.marker),)

    marker: Path


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Evil, "marker", tmp_path / "ran", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    assert not Evil.marker.exists(), "the code in the file was run"
    pickle.loads(pickle.dumps(Evil()))
    assert Evil.marker.exists(), "the trap itself does not work"


def checkpoint() -> dict[str, Any]:
    """What a trainer would resume from, but for the trap in it."""
    return {"pytorch-lightning_version": "2.6.4", "global_step": 1, "state_dict": {}, "callbacks": {"EMA": Evil()}}


def archive(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint(), path)
    return path


def legacy(path: Path) -> Path:
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=False)
    return path


def bare(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    return path


def run_folder(path: Path) -> Path:
    archive(path / "checkpoints" / "last.ckpt")
    return path


def exported(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"architecture": "vit_nano", "config": {}}')
    return legacy(path / "pytorch_model.bin").parent


def sharded(path: Path, index: Any = None, meta: Any = None, item: Any = 1) -> Path:
    """A folder as sharded strategies write it, of one number."""
    path.mkdir()
    buffer = io.BytesIO()
    torch.save(item, buffer)
    (path / "__0_0.distcp").write_bytes(buffer.getvalue())
    place = {MetadataIndex("lr"): _StorageInfo("__0_0.distcp", 0, len(buffer.getvalue()))}
    index = index or Metadata({"lr": BytesStorageMetadata()}, storage_data=place)
    (path / ".metadata").write_bytes(pickle.dumps(index))
    torch.save(meta or {"pytorch-lightning_version": "2.6.4"}, path / "meta.pt")
    return path


FILES: dict[str, Callable[[Path], Path]] = {
    "evil.ckpt": archive,
    "evil.pth": legacy,
    "evil.bin": bare,
    "run": run_folder,
    "model": exported,
    "index.ckpt": lambda path: sharded(path, index=Evil()),
    "meta.ckpt": lambda path: sharded(path, meta=checkpoint()),
    "item.ckpt": lambda path: sharded(path, item=Evil()),
}


@pytest.mark.parametrize("name", FILES)
def test_eval_refuses_in_a_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = FILES[name](tmp_path / name)
    assert main(["eval", "digits_vit_nano", "--checkpoint", str(path), "--trainer.accelerator=cpu"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoo eval: error: ")]
    assert len(errors) == 1 and "nothing was loaded or run" in errors[0] and str(path) in errors[0]


@pytest.mark.parametrize("sharding", [False, True])
def test_resume_refuses_in_a_line(sharding: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if sharding:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        sharded(tmp_path / "run" / "checkpoints" / "last.ckpt", item=Evil())
    else:
        run_folder(tmp_path / "run")
    assert main(["train", "digits_vit_nano", "--output", "run", "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("zoo train: error: ") and error.count("\n") == 1 and "nothing was loaded or run" in error


@pytest.mark.parametrize("form", [archive, legacy, bare])
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "vit_nano", "x.png", "--checkpoint"],
        ["export", "vit_nano", "x.onnx", "--checkpoint"],
        ["convert", "--name", "vit_nano"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_other_commands_refuse(form: Callable[[Path], Path], arguments: list[str], tmp_path: Path) -> None:
    path = form(tmp_path / "evil.pt")
    target = ["out"] if arguments[0] == "convert" else []
    assert main([*arguments, str(path), *target]) == 2


@pytest.mark.parametrize("step", ["fit", "validate", "test"])
def test_a_trainer_by_hand_refuses(step: str, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    task, data = ImageClassification("vit_nano"), DigitsDataModule()
    with pytest.raises(pickle.UnpicklingError):
        getattr(trainer(max_epochs=1), step)(task, datamodule=data, ckpt_path=str(archive(tmp_path / "evil.ckpt")))


def test_harmless_shards_are_read(tmp_path: Path) -> None:
    assert read_checkpoint(sharded(tmp_path / "last.ckpt")) == {"pytorch-lightning_version": "2.6.4"}


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    place = {MetadataIndex("lr"): _StorageInfo("../secret", 0, 1)}
    path = sharded(tmp_path / "last.ckpt", index=Metadata({"lr": BytesStorageMetadata()}, storage_data=place))
    with pytest.raises(ValueError, match="no plain file in its folder"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "trainer",
    ["{}", "memory://more.yaml", {"callbacks": ["{}"]}, {"logger": "{}"}, {"strategy": {"init_args": {"x": "{}"}}}],
    ids=str,
)
def test_a_run_folder_has_no_sections_in_other_files(trainer: Any, tmp_path: Path) -> None:
    """A parser reads a section, or a class, from the file that a text names: with classes that nobody has looked at."""
    more = tmp_path / "more.yaml"
    more.write_text("{callbacks: [{class_path: evil.Evil}]}")
    part = {"class_path": "zoo.train.tasks.ImageClassification", "init_args": {}}
    content = {"trainer": trainer, "model": part, "data": part}
    (tmp_path / "config.yaml").write_text(json.dumps(content).replace('"{}"', json.dumps(str(more))))
    with pytest.raises(ValueError, match=r"makes a .*more\.yaml, which is no class of this library"):
        configuration(tmp_path)


def test_folders_and_times_of_a_run_are_no_classes(tmp_path: Path) -> None:
    part = {"class_path": "zoo.train.tasks.ImageClassification", "init_args": {}}
    trainer = {"default_root_dir": "s3://bucket/runs", "max_time": "00:12:00:00", "precision": "bf16-mixed"}
    (tmp_path / "config.yaml").write_text(json.dumps({"trainer": trainer, "model": part, "data": part}))
    assert "s3://bucket/runs" in configuration(tmp_path)[0]
