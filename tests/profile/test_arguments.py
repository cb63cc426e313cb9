"""What is asked of a profile that cannot be had, and what it writes besides."""

from __future__ import annotations

import os

import pytest

import zoo
from zoo.cli import main
from zoo.profile.chatter import without_chatter

NOISE = b"""USDT:2026-11-30 01:48:33 4964:4964 SyncActivityProfilerHandler.cpp:39] profiler_start
ERROR:2026-11-30 01:48:33 4964:4964 DeviceProperties.cpp:56] gpuGetDeviceCount failed with code 35
[W1130 01:48:33.861990531 CPUAllocator.cpp:245] Memory block of unknown size was allocated before
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vim_nano", "--tokens", "64"], "tokens is the length of a text or sequence, got 64; Vim reads images"),
        (["mamba2_nano", "--image-size", "64"], "image_size is the side of images, got 64; mamba2_nano reads a text"),
        (["vit_nano", "--depth", "0"], "--depth: must be at least 1, got 0"),
        (["vit_nano", "--json", "/nodir/x.json"], "--json: must be a file in a folder that is there"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, said, capsys):
    try:
        code = main(["profile", *arguments, "--device", "meta"])
    except SystemExit as stopped:
        code = stopped.code
    told = capsys.readouterr()
    assert code == 2 and said in told.err and not told.out


def test_a_length_that_is_fixed_is_not_ignored():
    name = next(n for n in zoo.list_models("*_nano") if hasattr(zoo.create_model(n, device="meta").config, "length"))
    length = zoo.create_model(name, device="meta").config.length
    assert zoo.profile(name, tokens=length, device="meta", training=False).inputs[1] == length
    with pytest.raises(ValueError, match=f"reads {length} vectors at once: leave out tokens, got {length + 1}"):
        zoo.profile(name, tokens=length + 1, device="meta")


def test_the_profilers_chatter_is_left_out_and_nothing_else(capfd):
    with pytest.raises(RuntimeError, match="ours"), without_chatter():
        os.write(2, b"before\n" + NOISE + b"after\n")
        raise RuntimeError("ours")
    os.write(2, b"then\n")
    assert capfd.readouterr().err == "before\nafter\nthen\n"


def test_a_profile_writes_nothing(capfd, monkeypatch):
    from importlib import import_module

    from zoo.profile.record import Peaks

    monkeypatch.setattr(import_module("zoo.profile"), "peaks", lambda *_, **__: Peaks("cpu", "float32", 1e15, 1e15))
    zoo.profile("mamba2_nano", tokens=8, training=False, runs=1)
    assert capfd.readouterr().err == ""
