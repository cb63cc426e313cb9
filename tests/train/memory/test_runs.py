"""A recipe with --memory: resumed bit for bit, also after kill -9, and wrong options are one error before training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.cli import main
from zoo.cli.errors import UsageError
from zoo.train.adapt import ContinualClassification
from zoo.train.callbacks import newest_checkpoint
from zoo.train.tasks import VocabularyAdaptation

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),  # LightningCLI's own calls
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
RECIPE = "docs_transformer_nano"
SHORT = [
    "--model.schedule_steps=500", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0",
    "--data.batch_size=2", "--data.seq_len=24", "--throughput.count_flops=false", "--trainer.accelerator=cpu",
]  # fmt: skip
BOTH = ["--memory", "streambp", "--memory.chunk_size=8", "--memory=ssdtrain", "--memory.resident=0"]
BOTH += ["--memory.smallest", "1"]


def test_tasks_that_make_something_of_their_model_take_methods():
    task = VocabularyAdaptation("transformer_nano", grad_checkpointing=True, memory={"kind": "ssdtrain"})
    assert [method.kind for method in task.memory] == ["checkpointing", "ssdtrain"]
    with pytest.raises(ValueError, match="leave out the memory method ssdtrain"):
        ContinualClassification("vit_nano", {"adapter": {"kind": "paca"}}, sizes=[2] * 5, memory={"kind": "ssdtrain"})


def arguments(output: Path, *options: str, steps: int) -> list[str]:
    return ["train", RECIPE, "--output", str(output), *SHORT, *options, f"--trainer.max_steps={steps}"]


def weights(output: Path) -> dict[str, Any]:
    return torch.load(newest_checkpoint(output) or "", weights_only=True)["state_dict"]


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    """Also of gradients added up over two batches; and plain training gives the same up to rounding."""
    for name, options, steps in (
        ("whole", BOTH, 4), ("broken", BOTH, 2), ("broken", ["--resume"], 4), ("plain", [], 4)
    ):  # fmt: skip
        more = ["--trainer.accumulate_grad_batches=2"]
        assert main(arguments(tmp_path / name, *options, *more, steps=steps)) == 0
    whole, broken, plain = (weights(tmp_path / name) for name in ("whole", "broken", "plain"))
    assert all(torch.equal(tensor, broken[key]) for key, tensor in whole.items())
    assert all(torch.allclose(tensor, plain[key], atol=1e-3) for key, tensor in whole.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "stream"], "did you mean 'streambp'"),
        (["--memory", "streambp", "--memory.chunk=2"], "has no option 'chunk'"),
        (["--memory.chunk_size=2"], "Name it first: --memory NAME"),
        (["--memory", "streambp", "--model.grad_checkpointing=true"], "checkpointing and streambp both save"),
        (["--memory", "reversible"], "adds to one stream, which cannot be undone"),
        (["--memory", "memo", "--trainer.strategy=fsdp2"], "memo needs whole weights, and fsdp2 shards them"),
    ],
)
def test_wrong_options_are_one_error_before_training(options, message, tmp_path, capsys):
    with pytest.raises((SystemExit, UsageError)):
        raise SystemExit(main(arguments(tmp_path, *options, steps=1)))
    assert message in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


HOLD = """
import pathlib, time
from lightning.pytorch import Callback

class Hold(Callback):
    def on_before_backward(self, trainer, *args):
        marker = pathlib.Path(trainer.default_root_dir, "held")
        if trainer.global_step == 3 and not marker.exists():
            marker.touch()
            time.sleep(600)
"""


@pytest.mark.slow
def test_killed_between_the_passes_and_resumed(tmp_path):
    """Activations are in the file then, of which nothing is left."""
    folder, runs = tmp_path / "activations", [tmp_path / "whole", tmp_path / "broken"]
    folder.mkdir()
    (tmp_path / "hold.py").write_text(HOLD)
    options = [*BOTH, f"--memory.folder={folder}", "--checkpoint.every_n_steps=2"]
    assert main(arguments(runs[0], *options, steps=5)) == 0
    held = arguments(runs[1], *options, "--trainer.callbacks+=hold.Hold", steps=5)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    victim = subprocess.Popen([sys.executable, "-m", "zoo.cli", *held], env=environment, stderr=subprocess.PIPE)
    while not (runs[1] / "held").exists() and victim.poll() is None:
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    _, errors = victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL, errors.decode()
    assert not list(folder.iterdir())
    sys.path.insert(0, str(tmp_path))
    try:
        assert main(arguments(runs[1], "--resume", "--trainer.callbacks=hold.Hold", steps=5)) == 0
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("hold", None)
    whole, broken = map(weights, runs)
    assert all(torch.equal(tensor, broken[key]) for key, tensor in whole.items())
