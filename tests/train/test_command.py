"""What `zoo train` does around a run: how it ends, what it shows, what a run folder holds."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from zoo.cli import main
from zoo.train.data.digits import DigitImages
from zoo.train.history import read_history

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),  # LightningCLI's own calls
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL = [
    "digits_vit_nano",
    "--model.model_args.depth=1",
    "--trainer.accelerator=cpu",
    "--trainer.limit_train_batches=6",
]
SMALL += ["--throughput.count_flops=false", "--trainer.limit_val_batches=1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_with_its_state_saved(number, code, tmp_path, monkeypatch, capsys) -> None:
    fetch, fetched = DigitImages.fetch, []

    def fetch_and_be_asked_to_stop(self: DigitImages, *arguments: Any) -> Any:
        fetched.append(1)
        if len(fetched) == 4 and self.augment_seed is not None:
            os.kill(os.getpid(), number)
        return fetch(self, *arguments)

    monkeypatch.setattr(DigitImages, "fetch", fetch_and_be_asked_to_stop)
    arguments = ["train", *SMALL, "--output", str(tmp_path), "--trainer.max_epochs=1"]
    assert main([*arguments, "--trainer.num_sanity_val_steps=0"]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoo train: ")]
    assert len(errors) == 1 and f"stopped by {signal.Signals(number).name} after step" in errors[0]
    assert "--resume" in errors[0] and not (tmp_path / "model").exists()
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] in (3, 4)  # by when the batch was fetched
    assert main([*arguments, "--resume"]) == 0
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 6


@pytest.mark.parametrize("epochs", ["1", "-1"])
def test_a_short_run_shows_its_score_and_nothing_else(epochs, tmp_path, capfd) -> None:
    more = ["--trainer.max_epochs", epochs, "--trainer.max_steps=6"]
    assert main(["train", *SMALL, *more, "--output", str(tmp_path)]) == 0
    shown = "".join(capfd.readouterr())
    assert "Tip" not in shown and "deprecated" not in shown and "/-2" not in shown
    assert ("val/acc1" in shown.splitlines()[-1]) == (epochs == "1"), "an epoch that is cut short has no score"


def test_without_checkpoints(tmp_path: Path) -> None:
    more = ["--trainer.enable_checkpointing=false", "--trainer.max_epochs=1"]
    assert main(["train", *SMALL, *more, "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "history.jsonl", "model"}


@pytest.mark.parametrize("form", [["--trainer.logger", "CSVLogger"], ["--trainer.logger+=CSVLogger"]], ids=str)
def test_loggers_add_to_what_is_there(form, tmp_path) -> None:
    run = tmp_path / "run"
    more = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--output", str(run)]
    assert main(["train", *SMALL, *form, *more]) == 0
    kept = {"checkpoints", "config.yaml", "history.jsonl", "model"}
    assert {path.name for path in run.iterdir()} == {*kept, "lightning_logs"}
    written = next(run.glob("lightning_logs/*/metrics.csv")).read_text()
    assert all(f"{row['train/loss']}" in written for row in read_history(run) if "train/loss" in row)
    elsewhere = [*form, f"--trainer.logger.save_dir={tmp_path / 'logs'}"]
    assert main(["train", *SMALL, *elsewhere, *more[:2], "--output", str(tmp_path / "other")]) == 0
    assert list((tmp_path / "logs").glob("lightning_logs/*/metrics.csv"))
    assert {path.name for path in (tmp_path / "other").iterdir()} == kept


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model, data and length are not the recipe's."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    more = ["--trainer.max_epochs=1", "--data.val_fraction=0.3", "--model.model_args.dim=32", "--output", str(folder)]
    assert main(["train", *SMALL, *more]) == 0
    return folder


def score(output: str) -> str:
    return next(line for line in output.splitlines() if "val/loss" in line)


def test_a_run_folder_knows_its_configuration(finished, capsys, caplog) -> None:
    options = ["--data.val_fraction=0.3", "--model.model_args.depth=1", "--model.model_args.dim=32"]
    assert main(["eval", "digits_vit_nano", "--checkpoint", str(finished / "checkpoints" / "last.ckpt"), *options]) == 0
    expected = score(capsys.readouterr().out)
    for arguments in ([str(finished)], ["digits_vit_nano", "--checkpoint", str(finished)]):
        assert main(["eval", *arguments]) == 0
        assert score(capsys.readouterr().out) == expected
        assert "differs" not in caplog.text
    assert main(["eval", str(finished), "--data.val_fraction=0.1"]) == 0
    assert score(capsys.readouterr().out) != expected


def test_a_contradiction_to_the_run_is_said(finished, capsys, caplog) -> None:
    assert main(["eval", "docs_mamba2_nano", "--checkpoint", str(finished)]) == 2
    error = capsys.readouterr().err
    assert "was trained with model zoo.train.tasks.ImageClassification" in error and error.count("\n") == 1
    assert main(["eval", "digits_vim_nano", "--checkpoint", str(finished)]) == 0
    assert "model.init_args.model is 'vit_nano', not 'vim_nano'" in caplog.text
    assert main(["eval", str(finished), "--model.model_args.dim=64"]) == 2
    assert "does not fit the model; nothing was loaded" in capsys.readouterr().err


def test_resuming_keeps_the_configuration_but_for_overrides(finished, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert main(["train", "digits_vit_nano", "--output", str(run), "--resume", "--trainer.max_epochs=2"]) == 0
    assert torch.load(run / "checkpoints" / "last.ckpt")["global_step"] == 12, "6 batches an epoch, as the run had"
    assert json.loads((run / "model" / "config.json").read_text())["config"]["dim"] == 32
    again = ["train", "digits_vit_nano", "--output", str(run), "--resume", "--model.model_args.dim=64"]
    assert main(again) == 2
    assert "does not fit the model; nothing was loaded" in capsys.readouterr().err


def test_other_data_in_the_middle_of_an_epoch_are_refused_before_anything_is_written(
    finished, tmp_path, capsys
) -> None:
    """The sixth batch of a fraction of the data; what the folder says of itself stays."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = ["train", "digits_vit_nano", "--output", str(run), "--resume", "--trainer.max_epochs=2"]
    for change in ("--data.val_fraction=0.1", "--data.batch_size=32", "--data.seed=7"):
        assert main([*again, change]) == 2
        error = capsys.readouterr().err
        assert "resumed in mid-epoch only with the same data, seed and global batch size" in error
        assert error.count("\n") == 1 and "Traceback" not in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"class_path": "evil.Data"}},
        {"data": "evil.Data"},
        {"model": {"class_path": "zoo.train.tasks.ImageClassification", "init_args": "evil.yaml"}},
        {"trainer": {"callbacks": ["evil.Callback"]}},
        {"trainer": {"logger": {"class_path": "evil.Logger"}}},
        {"import": ["evil.py"]},
    ],
    ids=str,
)
def test_the_configuration_of_a_foreign_run_runs_no_code(finished, tmp_path, monkeypatch, change) -> None:
    run, marker = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(finished, run)
    (run / "evil.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    content = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**content, **change}))
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(run)
    harmless = "import" in change
    assert main(["eval", "."]) == (0 if harmless else 2)
    assert main(["train", "digits_vit_nano", "--output", ".", "--resume"]) == (0 if harmless else 2)
    assert not marker.exists()
