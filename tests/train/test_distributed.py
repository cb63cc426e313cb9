"""Two processes with gloo: DDP and FSDP2 train to what one process trains to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cases.distributed_adapters import RUNS, arguments
from zoo.adapt import ADAPTERS
from zoo.benchmarks import zero
from zoo.cli import main
from zoo.train.history import read_history

OPTIONS = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=-1",
    "--trainer.log_every_n_steps=1",
    "--model.schedule_steps=6",
    "--trainer.val_check_interval=3",
    "--trainer.check_val_every_n_epoch=null",
    "--model.warmup_steps=2",
    "--ema.decay=0.9",
    "--data.seq_len=64",
    "--data.eval_batch_size=64",
    "--data.val_fraction=0.02",
    "--trainer.num_sanity_val_steps=0",
    "--checkpoint.every_n_steps=3",
    "--throughput.count_flops=false",
]
WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(folder: Path, rank: int, port: int) -> subprocess.Popen[str]:
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    identity = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "zoo"}
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), *OPTIONS, "--data.batch_size=4"],
        env={**os.environ, **rendezvous, **identity, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "zero").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [launch(folder, rank, port) for rank in range(2)]
    one = [sys.executable, "-m", "zoo.cli", "train", "docs_mamba2_nano", "--output", str(folder / "one"), *OPTIONS]
    single = subprocess.run(
        [*one, "--data.batch_size=8", "--trainer.max_steps=6"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert single.returncode == 0, single.stderr
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "resumed", "zero1"])
def test_two_processes_equal_one(runs: Path, name: str) -> None:
    expected, got = read_history(runs / "one"), read_history(runs / name)
    assert [row["step"] for row in got] == [row["step"] for row in expected]
    losses = 0
    for one, two in zip(expected, got, strict=True):
        for key in ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte"):
            assert (key in one) == (key in two)
            if key in one:
                losses += 1
                assert two[key] == pytest.approx(one[key], rel=1e-4), f"{key} at step {one['step']}"
    assert losses == 6 * 2 + 2 * 2
    weights = [load_file(runs / run / "model" / "model.safetensors") for run in ("one", name)]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_adapters_of_two_processes_are_those_of_one(runs: Path) -> None:
    """Up to rounding in float64; what is frozen stays to the bit, of which the processes took care."""
    for rank in range(2):
        found = json.loads((runs / f"adapters-{rank}.json").read_text())
        assert set(found) == set(ADAPTERS) - {"scedit"}  # which is of U-Nets
        for kind, far in found.items():
            assert far["apart"] < 1e-9 < 1e-5 < far["moved"], f"{kind} in process {rank}: {far}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning")  # LightningCLI's own calls
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("name", RUNS)
def test_what_learns_in_a_step_is_agreed_on(runs: Path, name: str) -> None:
    """Layers that are drawn, experts of a task: two processes train to what one trains to, in float64."""
    assert main(arguments(name, runs, 1)) == 0
    one, two = (torch.load(runs / f"{name}-{count}" / "checkpoints" / "last.ckpt") for count in (1, 2))
    assert one["global_step"] == two["global_step"] > 5
    for key, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], tensor, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("name", "broken"), [("fsdp2", "resumed"), ("ddp", "zero1")])
def test_sharded_run_resumes_exactly(runs: Path, name: str, broken: str) -> None:
    whole, resumed = (load_file(runs / run / "model" / "model.safetensors") for run in (name, broken))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_sharded_checkpoint_is_a_file_per_process(runs: Path) -> None:
    checkpoint = runs / "fsdp2" / "checkpoints" / "last.ckpt"
    assert {path.name for path in checkpoint.iterdir()} == {".metadata", "meta.pt", "__0_0.distcp", "__1_0.distcp"}
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_gradients_of_shared_modules_and_of_repeated_blocks(runs: Path) -> None:
    apart = json.loads((runs / "gradients.json").read_text())
    assert len(apart) == 4 and max(apart.values()) < 1e-12, apart


def test_gradients_of_memory_methods(runs: Path) -> None:
    apart = json.loads((runs / "memory.json").read_text())
    assert len(apart) == 5 and max(apart.values()) < 1e-12, apart


def test_masks_move_alike_in_all_processes(runs: Path) -> None:
    apart = json.loads((runs / "masks.json").read_text())
    assert apart.keys() == {"iss_p", "evolution"} and max(apart.values()) < 1e-12, apart


def test_stages_of_zero_share_what_the_paper_says_and_train_to_the_same_weights(runs: Path) -> None:
    found = json.loads((runs / "zero" / "found.json").read_text())
    single = found["single"]
    assert single["weights"] == single["at rest"] == single["gradients"] == 8 * found["parameters"]
    for stage, record in found["stages"].items():
        formula = zero.expected(stage, single, 2)
        one, other = record["processes"]
        assert record["apart"] < 1e-12, stage
        for part, divided in zip(zero.PARTS, zero.STAGES[stage], strict=True):
            if (stage, part) == ("zero2", "weights"):  # whole ones beside the own part, see the module
                assert one["at rest"] + other["at rest"] == single["weights"] == one[part] - one["at rest"]
            elif divided:
                assert one[part] + other[part] == single[part], (stage, part)
                assert max(one[part], other[part]) < 1.1 * formula[part], (stage, part)
            else:
                assert one[part] == other[part] == single[part], (stage, part)
