"""A recipe with --sparsity: masks in checkpoints and in the model, resuming bit for bit, wrong options; and features
chosen by an evolving autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.cli import main
from zoo.cli.errors import UsageError
from zoo.layers.sparse.masks import masks
from zoo.train.callbacks import newest_checkpoint
from zoo.train.command import TrainingRun
from zoo.train.sparsity import QuickSelection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),  # LightningCLI's own calls
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
RECIPE = "digits_simplenet_nano"
SHORT = [
    "--model.schedule_steps=500", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0",
    "--data.batch_size=4", "--throughput.count_flops=false",
]  # fmt: skip
SOFT = ["--sparsity", "iss_p", "--sparsity.ratio=0.9", "--sparsity.steps", "3"]


def train(output: Path, *options: str, steps: int) -> dict[str, Any]:
    assert main(["train", RECIPE, "--output", str(output), *SHORT, *options, f"--trainer.max_steps={steps}"]) == 0
    return torch.load(newest_checkpoint(output) or "")


@pytest.mark.parametrize("options", [SOFT, ["--sparsity=evolution", "--sparsity.every=3", "--sparsity.epsilon=2"]])
def test_a_run_broken_off_while_masks_move(options, tmp_path):
    """Resumed it is the unbroken one, masks, counts and averages too; the model that is left has the masks."""
    whole = train(tmp_path / "whole", *options, steps=4)
    train(tmp_path / "broken", *options, steps=2)
    broken = train(tmp_path / "broken", "--resume", steps=4)
    assert whole["global_step"] == broken["global_step"] == 4
    assert all(torch.equal(tensor, broken["state_dict"][key]) for key, tensor in whole["state_dict"].items())
    model: Any = zoo.create_model(f"local-dir:{tmp_path / 'whole' / 'model'}")
    held = masks(model)
    assert held and all(int(mask.done) == 4 and not mask.mask.all() for mask in held.values())
    for name, mask in held.items():
        layer, _, weight = name.rpartition(".")
        key = f"{layer}.parametrizations.{weight}.0.mask"
        assert torch.equal(whole["state_dict"][f"average.{key}"], mask.mask)
        assert torch.equal(whole["state_dict"][f"model.{key}"], mask.mask)
    if options is SOFT:
        assert all(int(mask.mask.sum()) == round(0.1 * mask.mask.numel()) for mask in held.values())


def test_options_go_over_what_the_recipe_says(tmp_path):
    known = {"kind": "iss_p", "ratio": 0.5, "steps": 7}
    given = {"model": "vit_nano", "model_args": {"changes": [known]}}
    content: dict[str, Any] = {"model": {"class_path": "zoo.train.tasks.ImageClassification", "init_args": given}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(content | {"data": {"class_path": "zoo.train.data.DigitsDataModule"}}))

    def made(*options: str) -> Any:
        return TrainingRun(recipe, options, tmp_path / "run").model.given[1]["changes"]

    assert made() == [known]
    assert made("--sparsity.ratio", "0.8") == [{**known, "ratio": 0.8}]
    assert made("--sparsity=pruned", "--sparsity.pattern=1:2") == [{"kind": "pruned", "pattern": "1:2"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "isp"], "a sparsity is one of evolution, iss_p, pruned, got 'isp', did you mean 'iss_p'"),
        (["--sparsity.ratio=0.5"], "a sparsity is one of evolution, iss_p, pruned, got None"),
        (["--sparsity=iss_p", "--sparsity.ratios=2"], "has no option 'ratios', did you mean 'ratio'"),
        (["--sparsity=pruned", "--sparsity.pattern=2:7"], "skip it, or choose another pattern"),
    ],
)
def test_wrong_options_are_one_error_before_training(options, message, tmp_path, capsys):
    with pytest.raises((SystemExit, UsageError)):
        raise SystemExit(main(["train", RECIPE, "--output", str(tmp_path), *SHORT, *options]))
    assert message in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_features_are_told_from_noise():
    """Eight columns that follow one number are stronger than eight that follow nothing; links keep their count, a seed
    gives the same, and no other draws change."""
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 1, generator=draws)
    x = torch.cat([hidden + 0.3 * torch.randn(600, 8, generator=draws), torch.randn(600, 8, generator=draws)], 1)
    options: dict[str, Any] = {"hidden_dim": 200, "epsilon": 1.0, "epochs": 8, "lr": 0.03}
    found = QuickSelection(**options).fit(x)
    assert found.strengths[:8].mean() > 1.5 * found.strengths[8:].mean()
    assert sum(column < 8 for column in found.select(8).tolist()) >= 7
    for mask in masks(found.model).values():
        assert int(mask.mask.sum()) == 16 + 200 and int(mask.done) == 8 * 6
    torch.testing.assert_close(found.strengths, found.model.encoder.weight.detach().abs().sum(0))
    state = torch.get_rng_state()
    assert torch.equal(QuickSelection(**options).fit(x).strengths, found.strengths)
    assert torch.equal(torch.get_rng_state(), state)
    table = x.numpy()
    for array in (
        table,
        table[::-1][::-1],
        np.asfortranarray(table),
        np.frombuffer(table.tobytes(), "f").reshape(600, 16),
    ):
        assert torch.equal(QuickSelection(**options).fit(array).strengths, found.strengths), "as scikit-learn has it"


def test_what_no_features_are_chosen_of():
    for wrong in (
        torch.full((3, 2), torch.nan),
        np.zeros((3, 2), int),
        np.zeros(3),
        [[1.0, 2.0]],
        torch.zeros(3, 2, 1),
    ):
        with pytest.raises(ValueError, match=rf"finite floats, got {type(wrong).__name__}"):
            QuickSelection().fit(wrong)
    chosen = QuickSelection(hidden_dim=4, epochs=1)
    for call in (lambda: chosen.select(1), lambda: chosen.strengths):
        with pytest.raises(ValueError, match="fit one first"):
            call()
    chosen.fit(torch.rand(10, 8))
    for count in (0, 50):
        with pytest.raises(ValueError, match=f"count must be 1 to the 8 columns of the table, got {count}"):
            chosen.select(count)
    assert chosen.select(8).tolist() == list(range(8))
