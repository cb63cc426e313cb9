"""A model registered in the user's own file: trained by recipe, saved, and used by every command."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from zoo.cli import main
from zoo.cli.imports import import_models

RECIPE = """
import: my_models.py
seed_everything: 0
model: {class_path: zoo.train.tasks.LanguageModeling, init_args: {model: paired_nano}}
data: {class_path: zoo.train.data.DocumentationDataModule, init_args: {seq_len: 32, batch_size: 4, val_fraction: 0.01}}
trainer: {accelerator: cpu, max_steps: 2, num_sanity_val_steps: 0, limit_val_batches: 1, enable_progress_bar: false}
throughput: {every_n_steps: 1}
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]


@pytest.fixture
def mine(root: Path, own_folder: Path) -> Path:
    """The file of docs/models.md, in the working folder; registry, modules and path forget it after the test."""
    file = own_folder / "my_models.py"
    found = re.search(
        r"```python\n(# my_models\.py\n.*?)```", (root / "docs" / "models.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None
    file.write_text(found[1])
    return file


@pytest.mark.parametrize("source", ["my_models.py", "my_models"])
def test_list_and_info_know_a_model_of_ones_own(mine, source, capsys) -> None:
    assert main(["list", "paired_*"]) == 2
    capsys.readouterr()
    for _ in range(2):  # a second import of the same file registers nothing twice
        assert main(["list", "paired_*", "--json", "--import", source, "--import", "my_models.py"]) == 0
        assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["paired_nano"]
    assert main(["info", "paired_nano", "--import", source]) == 0
    assert "2601.00001" in capsys.readouterr().out


def test_train_eval_and_generate_a_model_of_ones_own(mine, capsys) -> None:
    folder = mine.parent / "recipes"
    folder.mkdir()
    mine.rename(folder / mine.name)
    (folder / "mine.yaml").write_text(RECIPE)
    assert main(["train", "recipes/mine.yaml", "--output", "run"]) == 0  # the key is looked up beside the recipe
    assert json.loads(Path("run/model/config.json").read_text())["architecture"] == "paired_nano"
    assert str(folder / mine.name) in Path("run/config.yaml").read_text()
    assert main(["eval", "recipes/mine.yaml", "--checkpoint", "run"]) == 0
    assert "val/loss" in capsys.readouterr().out
    assert main(["generate", "run", "--max-new-tokens", "2", "--import", f"recipes/{mine.name}"]) == 0


def test_the_command_line_adds_to_the_recipe(mine, capsys) -> None:
    Path("mine.yaml").write_text(RECIPE.replace("import: my_models.py", ""))
    assert main(["train", "mine.yaml"]) == 2
    assert "unknown model 'paired_nano'" in capsys.readouterr().err
    assert main(["train", "mine.yaml", "--import", "my_models.py"]) == 0
    assert "my_models.py" in Path("runs/mine/config.yaml").read_text()


def test_errors_inside_the_file_are_shown_in_full(mine) -> None:
    mine.write_text("import nowhere_to_be_found")
    for source in ("my_models.py", "my_models"):
        with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
            main(["list", "--import", source])
        assert "my_models" not in sys.modules


def test_a_file_may_bear_the_name_of_another_module(mine) -> None:
    other = mine.with_name("json.py")
    other.write_text("VALUE = 3")
    assert import_models("json.py") == str(other) and sys.modules["json"] is json
