"""The command line: what it prints, how it fails, and a run from training to a sample."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.adapt import ADAPTERS
from zoo.cli import main
from zoo.cli.output import say
from zoo.masks import SPARSITIES
from zoo.train.data import DocumentationDataModule
from zoo.train.history import read_history
from zoo.train.memory import MEMORIES
from zoo.train.parallel import STRATEGIES

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),  # LightningCLI's own calls
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=3"]
SMALL += ["--trainer.enable_progress_bar=false", "--throughput.every_n_steps=1", "--trainer.num_sanity_val_steps=0"]
SMALL += ["--trainer.log_every_n_steps=1"]
TINY_TEXT = ["--data.seq_len=32", "--data.batch_size=4", "--data.val_fraction=0.01", "--model.model_args.depth=2"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "v*_nano", "--params"]) == 0
    output = capsys.readouterr().out
    assert "vim_nano" in output and "vit_nano" in output and "mamba2_nano" not in output
    assert f"{zoo.model_info('vim_nano').num_parameters:,}" in output
    assert main(["list", "--task", "language", "--family", "mamba2"]) == 0
    output = capsys.readouterr().out
    assert "mamba2_nano" in output and "mamba_nano" not in output
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in zoo.list_models())


def test_list_says_which_steps_are_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "m[ao]*_nano", "--steps", "--json"]) == 0
    found = {row["name"]: row["step"] for row in json.loads(capsys.readouterr().out)}
    assert found["moe_nano"].startswith(("program", "layer by layer: no C compiler"))
    assert found["mod_nano"].startswith("layer by layer: ") and "maelre_nano" not in found


@pytest.mark.parametrize("columns", ["80", "20", None])
def test_list_never_cuts_names(columns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS")
    else:
        monkeypatch.setenv("COLUMNS", columns)
    for pattern, more in (("*", []), ("scatterbrain*", ["--params"]), ("*", ["--pretrained"])):
        assert main(["list", pattern, *more]) == 0
        shown = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}
        assert shown == set(zoo.list_models(pattern, pretrained=True if "--pretrained" in more else None))


def test_list_and_info_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["list", "vim_*", "--params", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == zoo.list_models("vim_*")
    assert rows[1] == {
        "name": "vim_nano", "family": "vim", "task": "image-classification", "tags": ["bundled"],
        "num_parameters": zoo.model_info("vim_nano").num_parameters,
    }  # fmt: skip

    def strict(constant: str) -> None:
        raise ValueError(constant)

    for name in zoo.list_models("*_nano"):
        assert main(["info", name, "--json"]) == 0
        info = json.loads(capsys.readouterr().out, parse_constant=strict)
        assert info["name"] == name and info["paper"]["arxiv"] and info["config"].keys()


def test_licences_and_tokenizers_of_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "m*", "--pretrained"]) == 0
    lines = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert ("mamba2_130m", "mamba2", "language", "pile", "apache-2.0", "EleutherAI/gpt-neox-20b") in lines
    assert ("mamba2_nano", "mamba2", "language", "bundled", "apache-2.0", "bytes") in lines
    assert ("mcunet_in0", "mcunet", "image-classification", "in1k", "mit", "-") in lines
    assert main(["list", "vovnet39a", "--pretrained", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["weights"]["in1k"]["licence"] == "unknown" and "dropbox" in row["weights"]["in1k"]["source"]
    assert main(["info", "llama3_2_1b"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "weights base licence: llama3.2; tokenizer: meta-llama/Llama-3.2-1B" in text


def test_info_of_a_saved_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = zoo.create_model("vit_nano", depth=1, num_classes=3)
    zoo.save_model(model, tmp_path / "model")
    count = sum(p.numel() for p in model.parameters())
    for folder in (tmp_path, tmp_path / "model"):  # a run folder, and its model
        assert main(["info", str(folder), "--json"]) == 0
        info = json.loads(capsys.readouterr().out)
        assert (info["name"], info["num_parameters"], info["config"]["num_classes"]) == ("vit_nano", count, 3)


def test_output_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    say("the key :key: of [bold]")
    assert capsys.readouterr().out == "the key :key: of [bold]\n"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "mamba2_130m"]) == 0
    output = capsys.readouterr().out
    assert "128,989,632" in output and "2405.21060" in output and "vocab_size" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "nothing*"], "'nothing*'"),
        (["list", "--family", "mambo"], "'mamba"),
        (["info", "vim_nanoo"], "vim_nano"),
        (["train", "nothing"], "a name of `zoo train --help`"),
        (["train", "digits_vit_nano", "--model.lrr", "3"], "'lrr'"),
        (["train", "digits_vit_nano", "--model.lr", "high"], "Got value: high"),
        (["train", "digits_vit_nano", "--model.model", "vit_nanoo"], "vit_nano"),
        (["train", "digits_vit_nano", "--model.model_args.dimm", "3"], "'dim'"),
        (["train", "digits_vit_nano", "--data.batch_size", "0"], "got batch_size=0"),
        (["train", "digits_vit_nano", "--seed_everything", str(2**63 + 1)], "not in bounds"),
        (["train", "digits_vit_nano", "--model.optimizer_args", "{betta: 1}"], "'betta'"),
        (["train", "digits_vit_nano", "--ema.decay", "2"], "decay must be in"),
        (["train", "digits_vit_nano", "--nothing", "2"], "--nothing"),
        (["train", "docs_mamba_nano", "--data=TextFilesDataModule", "--data.paths=nowhere"], "no file fits 'nowhere'"),
        (["eval", "digits_vit_nano", "--checkpoint", "nowhere"], "nowhere"),
        (["generate", "nowhere"], "nowhere"),
        (["generate", "./nosuchdir"], "./nosuchdir is not there"),
        (["list", "--import", "nowhere.py"], "no file nowhere.py to import"),
        (["list", "--import", "no.where"], "no module no.where to import"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if not line.startswith(("Seed set", "GPU", "TPU"))]
    assert output == "" and len(lines) == 1, error
    assert lines[0].startswith(f"zoo {arguments[0]}: error: ") and says in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["nothing"], ["list", "--nothing"], ["generate", "x", "--seed", "y"], ["bench"], ["bench", "models"]],
)
def test_wrong_commands_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("arguments", [["bench", "layers"], ["train", "docs_mamba_nano", "--data.tokenizer", "gpt2"]])
def test_a_package_that_is_not_installed_is_one_line(arguments, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(arguments) == 2
    assert re.search(r"needs transformers.*\[text\]", capsys.readouterr().err)


def test_bench_help_is_of_the_command_or_of_the_subject(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "zoo bench SUBJECT --help" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "loading", "--help"])
    assert stopped.value.code == 0 and "--budget" in capsys.readouterr().out


def test_train_help_names_what_the_registries_hold(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0 and "digits_vit_nano" in said
    for option, names in (("--adapter", ADAPTERS), ("--memory", MEMORIES), ("--sparsity", SPARSITIES)):
        assert f"{option} NAME {option}.OPTION VALUE, with NAME one of {', '.join(sorted(names))}." in said
    assert f"--trainer.strategy NAME, Lightning's (such as ddp) or {', '.join(STRATEGIES)}." in said


def test_train_help_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "docs_mamba2_nano", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0 and "bits per byte" in said and "digits_vit_nano" not in said
    assert "--model=zoo.train.tasks.LanguageModeling --model.model=mamba2_nano" in said
    assert "`zoo train docs_mamba2_nano --print_config` shows all" in said
    with pytest.raises(SystemExit) as stopped:
        main(["train", "no_such_recipe", "--help"])
    assert stopped.value.code == 2 and "no recipe 'no_such_recipe'" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["zoo", "zoo.cli"])
def test_version(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, f"zoo {zoo.__version__}"), done.stderr


def test_completion_offers_models_and_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def autocomplete(parser) -> None:
        commands = next(action for action in parser._actions if action.dest == "command")
        for command, argument in (("train", "recipe"), ("info", "name"), ("generate", "model")):
            asked.extend(next(a for a in commands.choices[command]._actions if a.dest == argument).completer(prefix=""))
        raise SystemExit(0)

    monkeypatch.setitem(sys.modules, "argcomplete", SimpleNamespace(autocomplete=autocomplete))
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    with pytest.raises(SystemExit):
        main([])
    assert {"digits_vim_nano", "mamba2_130m"} <= set(asked)


def test_help_and_version_start_without_torch() -> None:
    code = """
import sys
from zoo.cli import build_parser, main
commands = next(action for action in build_parser()._actions if action.dest == "command").choices
for parser in (build_parser(), *commands.values()):
    assert parser.format_help().startswith("usage: zoo")
for option in ("--help", "--version"):
    try:
        main([option])
    except SystemExit as stopped:
        assert stopped.code == 0
heavy = {"torch", "numpy", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"zoo {zoo.__version__}" in done.stdout


def test_help_and_list_start_without_the_training_stack() -> None:
    code = """
import sys
from zoo.cli import main
try:
    main(["--help"])
except SystemExit as stopped:
    assert stopped.code == 0
assert main(["list"]) == 0
heavy = {"lightning", "timm", "transformers", "torchvision", "jsonargparse"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_train_eval_generate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run, data = tmp_path / "run", DocumentationDataModule(seq_len=32, val_fraction=0.01)
    options = [*SMALL, *TINY_TEXT, "--ema.decay=0.5"]
    assert main(["train", "docs_mamba2_nano", "--output", str(run), *options]) == 0
    assert str(run / "model") in capsys.readouterr().out
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.yaml", "history.jsonl", "model"}
    assert json.loads((run / "model" / "config.json").read_text())["config"]["depth"] == 2
    history = read_history(run)
    assert any("train/tokens_per_second" in row for row in history)
    expected = next(row["val/loss"] for row in history if "val/loss" in row)

    scores = []
    for source in (run, run / "checkpoints" / "last.ckpt", run / "model"):
        evaluation = ["eval", "docs_mamba2_nano", "--checkpoint", str(source), *SMALL, *TINY_TEXT]
        assert main(evaluation) == 0
        rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "val/" in line]
        scores.append({row[1].strip(): float(row[2]) for row in rows})
    assert scores[0] == scores[1] == scores[2], "a run, its checkpoint and its exported model are one model"
    assert scores[0]["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert scores[0]["val/bits_per_byte"] == pytest.approx(expected / math.log(2), rel=1e-5)
    assert data.documents("val")

    again = ["train", "docs_mamba2_nano", "--output", str(run), *options]
    assert main(again) == 2
    assert "--resume" in capsys.readouterr().err
    before = load_file(run / "model" / "model.safetensors")
    assert main([*again, "--resume"]) == 0
    after = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before), "a finished run has nothing left to do"
    capsys.readouterr()

    sample = ["generate", str(run / "model"), "--prompt", "The ", "--max-new-tokens", "20", "--seed", "3"]
    texts = []
    for more in ([], [], ["--seed", "4"], ["--temperature", "0"]):
        assert main([*sample, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert all(text.startswith("The ") for text in texts)
    assert texts[0] == texts[1] != texts[2]


def test_nan_stops_the_command_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["train", "digits_vit_nano", "--output", str(tmp_path), *SMALL, "--data.batch_size=8"]
    assert main([*arguments, "--model.lr=1e30", "--model.warmup_steps=0", "--trainer.gradient_clip_val=null"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoo train: ")]
    assert len(lines) == 1 and "training stopped at step" in lines[0]
    assert list(tmp_path.glob("nonfinite-step*.pt")) and not (tmp_path / "model").exists()
