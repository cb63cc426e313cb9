"""A recipe with --adapter: what learns, what is left at the end, resuming bit for bit, and wrong options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.adapt import adapters_of
from zoo.cli import main
from zoo.cli.errors import UsageError
from zoo.layers.adapt import before
from zoo.layers.quant import records
from zoo.train.callbacks import newest_checkpoint
from zoo.train.command import TrainingRun

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),  # LightningCLI's own calls
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
RECIPE = "docs_transformer_nano"
SHORT = [
    "--model.model_args.pretrained=true", "--model.schedule_steps=500", "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=0", "--data.batch_size=2", "--data.seq_len=24", "--throughput.count_flops=false",
]  # fmt: skip
PACA = ["--adapter", "paca", "--adapter.rank=2", "--adapter.targets", '["*.q_proj", "*.mlp.w1"]']


def train(output: Path, *options: str, steps: int) -> dict[str, Any]:
    assert main(["train", RECIPE, "--output", str(output), *SHORT, *options, f"--trainer.max_steps={steps}"]) == 0
    return torch.load(newest_checkpoint(output) or "")


def test_a_run_with_an_adapter(tmp_path):
    """Broken off and resumed it is the unbroken one; the adapter and the merged model are what was trained."""
    whole = train(tmp_path / "whole", *PACA, steps=4)
    train(tmp_path / "broken", *PACA, steps=2)
    broken = train(tmp_path / "broken", "--resume", steps=4)
    assert whole["global_step"] == broken["global_step"] == 4
    assert all(torch.equal(tensor, broken["state_dict"][key]) for key, tensor in whole["state_dict"].items())
    assert sum("columns" in key for key in whole["state_dict"]) == 6 == len(whole["optimizer_states"][0]["state"])

    tokens, plain = torch.arange(40)[None], zoo.create_model("transformer_nano", pretrained=True).eval()
    adapted: Any = zoo.create_model("transformer_nano", pretrained=True, adapter=tmp_path / "whole" / "adapter").eval()
    merged: Any = zoo.create_model(f"local-dir:{tmp_path / 'whole' / 'model'}").eval()
    assert torch.equal(adapted(tokens), merged(tokens)) and not torch.allclose(merged(tokens), plain(tokens))
    assert adapters_of(adapted)[0].rank == 2 and not adapters_of(merged)

    more = train(tmp_path / "more", "--adapter", str(tmp_path / "whole" / "adapter"), steps=1)
    held = [key for key in more["state_dict"] if "columns" in key]
    assert len(held) == 6
    assert not any(torch.equal(more["state_dict"][key], whole["state_dict"][key]) for key in held), "trained on"


def test_low_ranks_beside_the_codes_of_a_folder(tmp_path):
    """What is left is the compressed model with them, and they alone go on it."""
    base = f"local-dir:{zoo.save_model(zoo.quantize(zoo.create_model('transformer_nano', True)), tmp_path / 'small')}"
    options = [option for option in SHORT if "pretrained" not in option]
    lora = [f"--model.model={base}", "--adapter=lora", "--adapter.rank=2", "--trainer.max_steps=2"]
    assert main(["train", RECIPE, "--output", str(tmp_path / "run"), *options, *lora]) == 0
    tokens, small = torch.arange(40)[None], zoo.create_model(base).eval()
    found: Any = zoo.create_model(f"local-dir:{tmp_path / 'run' / 'model'}").eval()
    adapted = zoo.create_model(base, adapter=tmp_path / "run" / "adapter").eval()
    assert torch.equal(found(tokens), adapted(tokens)) and not torch.allclose(found(tokens), small(tokens))
    held = records(small)
    assert all(
        torch.equal(record.unpacked(), held[before(found, name)].unpacked()) for name, record in records(found).items()
    )


def test_options_go_over_what_the_recipe_says(tmp_path):
    described = {"kind": "lora", "rank": 4, "targets": ["*.q_proj"]}
    given = {"model": "transformer_nano", "model_args": {"pretrained": True, "adapter": described}}
    recipe = tmp_path / "recipe.yaml"
    content: dict[str, Any] = {"model": {"class_path": "zoo.train.tasks.LanguageModeling", "init_args": given}}
    recipe.write_text(json.dumps(content | {"data": {"class_path": "zoo.train.data.DocumentationDataModule"}}))

    def made(*options: str) -> Any:
        return TrainingRun(recipe, options, tmp_path / "run").model.given[1]["adapter"]

    assert made() == described
    assert made("--adapter.rank", "2") == {**described, "rank": 2}
    assert made("--adapter=paca", "--adapter.rank=2") == {"kind": "paca", "rank": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter", "pac"], "did you mean 'paca'"),
        (["--adapter", "paca", "--adapter.ranks=2"], "has no option 'ranks', did you mean 'rank'"),
        (["--adapter", "paca", "--adapter.targets=[head]"], "head shares its weight"),
        (["--adapter.rank=2"], "an adapter is described as"),
    ],
)
def test_wrong_options_are_one_error_before_training(options, message, tmp_path, capsys):
    with pytest.raises((SystemExit, UsageError)):
        raise SystemExit(main(["train", RECIPE, "--output", str(tmp_path), *SHORT, *options]))
    assert message in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())
