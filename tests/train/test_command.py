"""What `zoo train` does around a run: how it ends, what it shows, what a run folder holds."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.cli import main
from zoo.train.data.digits import DigitImages

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
