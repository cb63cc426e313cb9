"""Every built-in recipe says what it is and can be instantiated; the small ones run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from zoo.cli import recipe_names, recipe_path
from zoo.train.command import TrainingRun

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning")  # LightningCLI's own calls
RECIPES = [
    "digits_vim_nano",
    "digits_vit_nano",
    "docs_based_nano",
    "docs_longconv_nano",
    "docs_mamba2_nano",
    "docs_mamba_nano",
    "docs_transformer_nano",
    "imagenet_vim_tiny",
    "mqar_based_nano",
    "mqar_mamba2_nano",
    "text_mamba2_130m",
]
CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.precision=32-true"]
NANOS = [name for name in recipe_names() if name.endswith("_nano")]  # these are run


def test_names() -> None:
    assert set(RECIPES) <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_first_lines_state_command_metric_time_and_hardware(name: str) -> None:
    lines = recipe_path(name).read_text().splitlines()
    comments = [line for line in lines[:8] if line.startswith("#")]
    assert comments[0].startswith(f"# zoo train {name}")
    assert comments[1].startswith("# Metric: ")
    assert any(line.startswith("# Time: ") and "Hardware: " in line for line in comments)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in NANOS[1:]])
def test_every_recipe_instantiates(name: str, tmp_path: Path) -> None:
    run = TrainingRun(recipe_path(name), CPU, tmp_path)
    written = yaml.safe_load(recipe_path(name).read_text())
    chosen = written["model"]["init_args"]
    assert run.model.lr == chosen["lr"] and run.model.min_lr == chosen.get("min_lr", 0.0)
    assert run.datamodule.batch_size == written["data"]["init_args"]["batch_size"]
    assert run.trainer.default_root_dir == str(tmp_path)
    callbacks = {type(callback).__name__ for callback in run.trainer.callbacks}  # pyright: ignore
    assert {"EMA", "ExportModel", "LastCheckpoint", "NaNGuard", "RNGState", "Throughput"} <= callbacks


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("name", NANOS)
def test_every_nano_trains_and_is_evaluated_for_two_batches(name: str, tmp_path: Path) -> None:
    if name.startswith("cartpole_"):
        pytest.importorskip("gymnasium", reason="environments are Gymnasium's: pip install 'efficient-zoo[worlds]'")
    quick = ["--trainer.fast_dev_run=2", "--data.batch_size=4", "--data.eval_batch_size=4"]
    quick += ["--throughput.count_flops=false", "--trainer.enable_progress_bar=false"]
    run = TrainingRun(recipe_path(name), [*CPU, *quick], tmp_path)
    run.fit()
    assert run.trainer.global_step == 2 and run.scores()["val/loss"] > 0
    assert (tmp_path / "model" / "config.json").exists()
