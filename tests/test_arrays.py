"""Files of numpy that are none, sounds that are too short, and numbers that are no sizes: an error each."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.arrays import read_array, read_arrays
from zoo.audio import read_wave, write_wave
from zoo.cli import main
from zoo.cli.recipes import near
from zoo.generative import OnDeviceSora, ScaleKV, StepRehash


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("model", ["stack_vae_nano", "scatterformer_nano", "revunet3d_nano", "drama_nano"])
def test_what_is_no_file_of_numpy(model, capsys):
    np.save("o.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("whole.npy", np.zeros((40, 12)))
    np.savez("objects.npz", frames=np.array([{}], dtype=object), actions=np.zeros(1))
    Path("text.npy").write_text("1,2,3\n")
    Path("empty.npy").write_bytes(b"")
    Path("cut.npy").write_bytes(Path("whole.npy").read_bytes()[:-9])
    for file in ("text.npy", "empty.npy", "cut.npy", "o.npy", *(["objects.npz"] if model == "drama_nano" else [])):
        assert main(["predict", model, file]) == 2
        error = capsys.readouterr().err
        assert f"{file} is no .np" in error and "allow_pickle" not in error and len(error.strip().splitlines()) == 1


def test_arrays_of_other_content():
    np.save("words.npy", np.array(["a", "b"]))
    np.savez("two.npz", frames=np.zeros(2), others=np.ones(3))
    with pytest.raises(ValueError, match=r"words.npy must hold numbers, got <U1"):
        read_array("words.npy")
    with pytest.raises(ValueError, match=r"two.npz must hold one array, .* got several: frames, others"):
        read_array("two.npz")
    with pytest.raises(
        ValueError, match=r"must hold the arrays frames and actions: numpy.savez\(file, frames=..., act"
    ):
        read_arrays("two.npz", ("frames", "actions"))
    assert read_arrays("two.npz", ("others",))["others"].tolist() == [1, 1, 1]
    with pytest.raises(FileNotFoundError):
        read_array("missing.npy")


def test_sounds_that_are_too_short(capsys):
    write_wave("ten.wav", torch.ones(2, 10), 8000)
    with wave.open("none.wav", "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
    assert main(["predict", "deftan2_nano", "ten.wav"]) == 2
    assert "ten.wav must hold 64 samples or more, 8 ms, got 10 of a channel" in capsys.readouterr().err
    for least in (1, 64):
        with pytest.raises(ValueError, match=r"none.wav must hold .* got none: it is empty"):
            read_wave("none.wav", 2, 8000, least)
    write_wave("more.wav", torch.ones(2, 64), 8000)
    assert read_wave("more.wav", 2, 8000, 64).shape == (2, 64)
    assert main(["predict", "deftan2_nano", "more.wav", "--output", "x.gif"]) == 2
    assert "--output of sounds must end in .wav, .png, got x.gif" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["abc", "edge_moe:1.4MB", "256", "0.9", "0.25", "1.5TB"])
def test_memory_that_is_none(text, capsys):
    assert main(["generate", "transformer_nano", "--offload", text]) == 2
    error = capsys.readouterr().err
    assert "memory is a number with a unit (B, KB, MB" in error and f"got {text!r}" in error and "share" not in error


def test_classes_that_there_are_not():
    model: Any = zoo.create_model("dit_nano", depth=1)
    for classes, error in (
        (torch.tensor([11]), r"classes must be from 0 to 9, or 10 for none, got 11"),
        (torch.tensor([-1]), "got -1"),
        (torch.tensor([1.0]), "classes must be int64, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=error):
            model.sample(classes=classes, steps=1)
        with pytest.raises(ValueError, match=error):
            zoo.create_model("next_scale_nano").sample(classes=classes)  # type: ignore[operator]
    assert model.sample(classes=torch.tensor([10]), steps=1).isfinite().all()
    free: Any = zoo.create_model("dit_nano", depth=1, num_classes=0)
    with pytest.raises(ValueError, match="the model has no classes, got 1"):
        free.sample(classes=torch.tensor([1]), steps=1)


def test_numbers_of_samplers():
    images: Any = zoo.create_model("next_scale_nano")
    nothing: Any = None
    with pytest.raises(ValueError, match=r"a share must keep .* got 2"):
        ScaleKV.calibrated(images, nothing, None, 2)
    with pytest.raises(ValueError, match=r"takes tokens \(images, groups, tokens\) of images, got None"):
        ScaleKV.calibrated(images, nothing, None, 1)
    clips: Any = zoo.create_model("video_dit_nano", depth=1)
    for shortcut, error in (
        (OnDeviceSora(merged=99), "merged must be at most the 4 steps"),
        (OnDeviceSora(leap=4), "leap one of them from 0"),
        (StepRehash(first=5), "first must be at most the 4 steps, got 5"),
    ):
        with pytest.raises(ValueError, match=error):
            clips.sample(steps=4, shortcut=shortcut)
    assert clips.sample(steps=4, shortcut=OnDeviceSora(merged=4, leap=3)).isfinite().all()


def test_names_that_are_near(capsys):
    assert main(["eval", "wetok_nano"]) == 2
    error = capsys.readouterr().err
    assert "no recipe 'wetok_nano', did you mean 'digits_wetok_nano'?" in error and len(error) < 200
    assert near("digits_wetok_nan").startswith(", did you mean 'digits_wetok_nano'")
    assert near("nothing like this") == ""


def test_papers_of_the_u_nets():
    assert zoo.model_info("sdxl_unet").paper.arxiv == "2307.01952"
    assert {zoo.model_info(name).paper.arxiv for name in ("koala_1b", "unet_nano")} == {"2312.04005"}
