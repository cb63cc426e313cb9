"""What the user can mend is one line and an exit code: no connection, no room, no folder, text that is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
from lightning import Trainer
from PIL import Image
from safetensors import SafetensorError

import zoo
from zoo.checkpoints import connection
from zoo.cli import main
from zoo.cli.errors import UsageError, one_line

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SHORT = ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.num_sanity_val_steps=0"]
SHORT += ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1", "--throughput.every_n_steps=1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["HF_HUB_OFFLINE is set", "huggingface.co cannot be reached"])
def offline(request, tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Said to be offline, or found out (no test may connect to another machine)."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", request.param.startswith("HF"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return request.param


def said(capfd: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr but for what Lightning tells of a start."""
    noise = ("INFO: ", "Seed set", "GPU", "TPU", "💡", "`Trainer")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip() and not line.startswith(noise)]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("name", ["mamba2_130m", "deepseek_v2_lite", "hf-hub:owner/repo"])
def test_download_without_a_connection(offline, name, tmp_path, capfd) -> None:
    assert main(["download", name]) == 2
    line = said(capfd)
    assert offline in line and "HF_HUB_OFFLINE" in line and str(tmp_path / "hub" / "models--") in line
    assert ("local-dir:FOLDER" if ":" in name else "checkpoint_path=FILE") in line


def test_push_without_a_connection(offline, tmp_path, capfd) -> None:
    zoo.save_model(zoo.create_model("vit_nano", depth=1), tmp_path / "model")
    assert main(["push", "model", "owner/name"]) == 2
    assert f"nothing was published, {offline}" in said(capfd)


def test_a_proxy_is_left_to_the_client(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "https://nowhere.invalid")
    monkeypatch.setenv("https_proxy", "http://localhost:1")
    assert connection.unreachable() is None


def test_an_image_of_too_many_pixels(monkeypatch, capfd) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow refuses twice as many
    assert main(["predict", "vim_nano", "large.png"]) == 2
    line = said(capfd)
    assert "large.png: Image size (64 pixels) exceeds limit" in line and "MAX_IMAGE_PIXELS" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "mamba2_nano", "--prompt", "a\udcff"], "the text is not UTF-8 at character 1"),
        (["export", "vim_nano", "nowhere/vim.onnx"], "there is no folder nowhere for vim.onnx"),
        (["export", "vim_nano", "."], ". is a folder: name a file in it"),
        (["train", "digits_vit_nano", "--output", "file"], "file is a file: --output file must be a folder"),
        (["train", "digits_vit_nano", "--output", "file/run"], "file is a file: --output file/run must be a folder"),
        (["train", "digits_vit_nano", "--model.optimizer_args", '{"nope": 1}'], "unexpected keyword argument 'nope'"),
        (["train", "digits_vit_nano", "--model.optimizer", "nope"], "'nope'"),
        (["train", "digits_vit_nano", "--adapter", "no/such"], "there is no folder 'no/such' of zoo.save_adapter"),
        (["train", "digits_vit_nano", "--adapter", "perp"], "or --sparsity pruned beside --adapter perp"),
        (
            ["train", "digits_vit_nano", "--trainer.strategy", "zero4"],
            "strategies: fsdp2, zero1, zero2, zero3, tensor_",
        ),
        (["train", "docs_rwkv7_nano", "--adapter", "ladder"], "a ladder takes a model between whose blocks nothing"),
        (["train", "digits_vit_nano", "--seed_everything", str(2**63)], str(2**63)),
        (["predict", "./nosuchdir", "a.png"], "./nosuchdir is not there"),
        (["export", "file", "x.onnx"], "file is no folder"),
        (["export", "vim_nano", "x.onnx", "--batch", "0"], "fixed_batch must be at least 1, got 0"),
        (["generate", ""], "unknown model ''"),
        (["list", "--import", "."], "'.' is no file ending in .py and no module's name"),
        (["list", "--import", ""], "'' is no file ending in .py and no module's name"),
    ],
)
def test_one_line_and_exit_code_2(arguments, says, capfd) -> None:
    Path("file").touch()
    assert main(arguments) == 2
    line = said(capfd)
    assert line.startswith(f"zoo {arguments[0]}: error: ") and says in line


@pytest.mark.parametrize("seed", ["-1", str(2**63), "x"])
def test_seeds_out_of_range(seed, capfd) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "mamba2_nano", "--seed", seed])
    assert stopped.value.code == 2 and "--seed" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("PytorchStreamWriter failed writing file data/0: No space left on device"),
    ],
)
def test_a_full_disk_stops_the_training(error, monkeypatch, capfd) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    assert main(["train", "digits_vit_nano", "--output", "run", *SHORT]) == 1
    line = said(capfd)
    assert line.startswith("zoo train: run cannot be written: ") and "No space left" in line and "--resume" in line


def test_a_failed_save_says_so_and_leaves_nothing(monkeypatch, capfd) -> None:
    zoo.save_model(zoo.create_model("vit_nano", depth=1), "model")

    def full(*_: object, **__: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert main(["convert", "model", "copy"]) == 2
    line = said(capfd)
    assert "cannot be written: " in line and "No space left" in line
    assert not list(Path().glob("copy*/*"))


@pytest.mark.parametrize("named", ["3", "[3]", "{a: b}"])
def test_an_import_that_is_no_name_is_one_line(named: str, tmp_path, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"import: {named}")
    assert main(["train", str(recipe), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "import must name files or modules" in error


def test_options_keep_their_dashes_and_bullets_go() -> None:
    said = one_line(
        UsageError("Problem with given value\n  - --steps must be at least 1, got 0\n    - Expected an int")
    )
    assert said == "--steps must be at least 1, got 0 Expected an int"
