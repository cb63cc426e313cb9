"""kill -9 in mid-run, then --resume: the same weights, bit for bit, as a run that nothing broke."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

OPTIONS = [
    "--model.model_args.drop_rate=0.1",
    "--model.model_args.drop_path_rate=0.2",
    "--model.warmup_steps=5",
    "--ema.decay=0.9",
    "--data.batch_size=16",
    "--data.augment=true",
    "--trainer.limit_train_batches=15",
    "--trainer.max_epochs=4",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--checkpoint.every_n_steps=4",
    "--throughput.count_flops=false",
]


HOLD = """
import pathlib, time
from lightning.pytorch import Callback

class Hold(Callback):
    def on_train_batch_start(self, trainer, *args):
        marker = pathlib.Path(trainer.default_root_dir, "held")
        if trainer.global_step == 22 and not marker.exists():
            marker.touch()
            time.sleep(600)
"""


def command(folder: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "zoo.cli", "train", "digits_vit_nano", "--output", str(folder), *OPTIONS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder.parent)}
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return output + errors


def test_killed_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    (tmp_path / "hold.py").write_text(HOLD)
    unbroken, victim = command(whole), command(broken, "--resume", "--trainer.callbacks+=hold.Hold")
    while not (broken / "held").exists() and victim.poll() is None:
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    _, errors = victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL, errors
    assert "starting anew" in errors

    saved = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 20, "15 batches an epoch: the last checkpoint is of the middle of the second"
    assert not (broken / "model").exists()
    assert "resuming from" in finish(command(broken, "--resume", "--trainer.callbacks=hold.Hold"))
    finish(unbroken)

    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, broken))
    assert first["global_step"] == second["global_step"] == 60
    assert any(name.startswith("average.") for name in first["state_dict"])
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(first[part], second[part], part)
    assert_same(*(load_file(run / "model" / "model.safetensors") for run in (whole, broken)), "exported model")
    assert not same(saved["state_dict"], first["state_dict"]), "the checkpoint was the end: nothing was resumed"


def assert_same(a: Any, b: Any, name: str) -> None:
    assert same(a, b), f"{name} differs between the unbroken and the resumed run"


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
