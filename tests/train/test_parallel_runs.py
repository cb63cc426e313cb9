"""Runs of `zoo train` whose processes share a model: they learn what one process learns."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.multiprocessing.spawn import start_processes
from torch.testing import assert_close

from cases import parallel as cases
from zoo.cli import main
from zoo.train.history import read_history

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),  # LightningCLI's own calls
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(cases.train, (str(folder), port), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.parametrize("name", cases.RUNS)
def test_two_processes_learn_what_one_learns(runs: Path, name: str) -> None:
    """In float64; the first of them was stopped, and resumed."""
    assert main(cases.arguments(name, str(runs), 1)) == 0
    one, two = (read_history(runs / f"{name}-{count}") for count in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two] and len(one) >= 4
    compared = 0
    for expected, got in zip(one, two, strict=True):
        for key in ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte"):
            assert (key in expected) == (key in got)
            if key in expected:
                compared += 1
                assert got[key] == pytest.approx(expected[key], rel=1e-6), f"{key} at step {expected['step']}"
    assert compared >= 8
    whole, shared = (load_file(runs / f"{name}-{count}" / "model" / "model.safetensors") for count in (1, 2))
    assert whole.keys() == shared.keys()
    for key, tensor in whole.items():
        # the folder of a model that was shared is in float32
        assert_close(shared[key].double(), tensor, rtol=0, atol=1e-6, msg=lambda message, key=key: f"{key}: {message}")


def test_a_checkpoint_is_a_file_per_process(runs: Path) -> None:
    checkpoint = runs / f"{next(iter(cases.RUNS))}-2" / "checkpoints" / "last.ckpt"
    assert {path.name for path in checkpoint.iterdir()} == {".metadata", "meta.pt", "__0_0.distcp", "__1_0.distcp"}
