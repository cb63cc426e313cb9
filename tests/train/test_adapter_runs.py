"""Every way to tune is a run that is killed and goes on bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch import Callback

from zoo.adapt import ADAPTERS
from zoo.train.adapt import ContinualClassification, ImportanceSampling, PrunedLadder
from zoo.train.callbacks import LastCheckpoint, RNGState, newest_checkpoint
from zoo.train.data import DigitStreamDataModule, DocumentationDataModule, TurnedDigitsDataModule
from zoo.train.tasks import ImageClassification, LanguageModeling

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL = {"dim": 16, "depth": 4, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 32}
INT, TABLE = {"bits": 3, "group_size": 16}, {"bits": 2, "layout": "table"}
PRUNED = {"kind": "pruned", "ratio": 0.6}
TEXT: dict[str, tuple[dict[str, Any], list[Any]]] = {  # model_args, further callbacks
    "lora": ({"adapter": {"kind": "lora", "rank": 2, "dropout": 0.1}}, []),
    "qlora": ({"quantize": INT, "adapter": {"kind": "lora", "rank": 2}}, []),
    "dora": ({"adapter": {"kind": "dora", "rank": 2}}, []),
    "paca": ({"adapter": {"kind": "paca", "rank": 2}}, []),
    "sink_lora": ({"adapter": {"kind": "sink_lora", "rank": 2, "groups": 2}}, []),
    "ladder": ({"adapter": {"kind": "ladder", "reduction": 2}}, [lambda: PrunedLadder(samples=3)]),
    "peqa": ({"quantize": INT, "adapter": {"kind": "peqa"}}, []),
    "l4q": ({"quantize": INT, "adapter": {"kind": "l4q", "rank": 2}}, []),
    "sketchtune": ({"quantize": TABLE, "adapter": {"kind": "sketchtune"}}, []),
    "rows": ({"tie_embeddings": False, "adapter": {"kind": "rows", "rows": [32, 101, 116]}}, []),
    "perp": ({"changes": [PRUNED], "adapter": {"kind": "perp", "rank": 2}}, []),
    "pst": ({"adapter": {"kind": "pst", "rank": 2, "score_rank": 2, "steps": 4}}, []),
    "ist": ({"adapter": {"kind": "lora", "rank": 2}}, [lambda: ImportanceSampling(every_n_steps=2)]),
}
STREAM: dict[str, Any] = {"sizes": [5, 5], "lr": 1e-2, "weight_decay": 0.0, "min_lr": 1e-2, "schedule_steps": 9}
STEPS, KEPT = 5, 2  # optimiser steps of a run, and between two checkpoints


def made(name: str) -> tuple[Any, Any, list[Any]]:
    """Task, data and callbacks of a run, as a new process has them."""
    if name in TEXT:
        model_args, callbacks = TEXT[name]
        task: Any = LanguageModeling("transformer_nano", {**SMALL, **model_args}, lr=1e-2, schedule_steps=9)
        return task, DocumentationDataModule(seq_len=16, batch_size=2), [one() for one in callbacks]
    if name == "mamba_lora":
        model_args = {"dim": 16, "depth": 2, "adapter": {"kind": name, "rank": 2, "ssm": True}}
        task = LanguageModeling("mamba_nano", model_args, lr=1e-2, schedule_steps=9)
        return task, DocumentationDataModule(seq_len=16, batch_size=2), []
    if name == "mobiletl":
        task = ImageClassification("mcunet_nano", {"adapter": {"kind": name}}, lr=1e-2, schedule_steps=9)
        return task, TurnedDigitsDataModule(batch_size=4), []
    adapter = {"adapter": {"kind": "lora", "rank": 2}, "depth": 1}
    task = ContinualClassification("vit_nano", adapter, dynamic=name == "conpet_dynamic", top_k=2, **STREAM)
    return task, DigitStreamDataModule(tasks=2, items=12, batch_size=4), []


def test_an_average_begins_where_its_ladder_does():
    task, data, (prune,) = made("ladder")
    task.keep_average = True
    task.configure_model()
    data.setup()
    before = {key: tensor.clone() for key, tensor in task.average.state_dict().items()}
    prune.on_fit_start(SimpleNamespace(datamodule=data), task)  # type: ignore[arg-type]
    average, trained = task.average.state_dict(), task.trained.state_dict()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in average.items())
    assert any(not torch.equal(tensor, before[key]) for key, tensor in average.items())


class Killed(Callback):
    """What a kill would leave in the middle of a step: the folder as it is then, in another place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == STEPS - 1:
            shutil.copytree(trainer.default_root_dir, self.folder)


def test_every_method_is_here():
    assert {*TEXT, "mamba_lora", "mobiletl", "scedit"} - {"ist", "qlora"} == set(ADAPTERS)  # the last is of U-Nets


@pytest.mark.parametrize("name", [*TEXT, "mamba_lora", "mobiletl", "conpet_static", "conpet_dynamic"])
def test_a_killed_run_goes_on_bit_for_bit(name, trainer, tmp_path):
    def run(folder: Path, *further: Any) -> dict[str, Any]:
        seed_everything(0, verbose=False)
        task, data, callbacks = made(name)
        every = [RNGState(), *callbacks, *further, LastCheckpoint(KEPT)]
        runner = trainer(*every, max_steps=STEPS, limit_val_batches=0, default_root_dir=str(folder))
        runner.fit(task, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
        return torch.load(newest_checkpoint(folder) or "", weights_only=False)

    whole = run(tmp_path / "whole", Killed(tmp_path / "killed"))
    start = torch.load(newest_checkpoint(tmp_path / "killed") or "", weights_only=False)
    assert start["global_step"] == STEPS - 1 and whole["global_step"] == STEPS
    resumed = run(tmp_path / "killed")
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][key]), key
    assert same(whole["optimizer_states"], resumed["optimizer_states"])
    moved = [key for key, tensor in whole["state_dict"].items() if not torch.equal(tensor, start["state_dict"][key])]
    assert moved and len(whole["optimizer_states"][0]["state"]) > 0


def same(one: Any, other: Any) -> bool:
    """Whether nested containers hold the same, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
