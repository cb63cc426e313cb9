"""PyTorch files of training scripts: their weights load, their other values are read, and no code of theirs runs."""

from __future__ import annotations

import argparse
import collections
import pathlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from zoo.checkpoints import read_state_dict

NAME = "vit_nano"
HARMLESS: dict[str, Any] = {
    "args": argparse.Namespace(lr=1e-3, output=pathlib.Path("/runs/a"), nested=argparse.Namespace(a=[1, (2,)])),
    "max_accuracy": np.float64(76.1),
    "numbers": [np.float32(1), np.int64(2), np.bool_(True), np.str_("text"), np.datetime64("2024-01-01")],
    "history": np.arange(6.0).reshape(2, 3),
    "meters": collections.defaultdict(list, {"loss": [1.0]}),
    "counts": collections.defaultdict(int, a=1),
    "options": types.SimpleNamespace(a=1),
    "paths": [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:/a")],
    "random": np.random.RandomState(0).get_state(),
    "more": {1, 2, 3j},
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return zoo.create_model(NAME, depth=1).state_dict()


def loads(path: Path, tensors: dict[str, torch.Tensor], **options: Any) -> bool:
    loaded = zoo.create_model(NAME, depth=1, checkpoint_path=path, **options).state_dict()
    return all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("value", HARMLESS)
@pytest.mark.parametrize("zipped", [True, False])
def test_values_that_training_scripts_keep(value, zipped, tensors, tmp_path):
    content = {"model": tensors, value: HARMLESS[value]}
    torch.save(content, tmp_path / "run.pth", _use_new_zipfile_serialization=zipped)
    assert loads(tmp_path / "run.pth", tensors)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # for others all is as it was


def test_the_allowed_names_of_other_versions_of_numpy_and_python(tensors, tmp_path):
    """numpy 1 pickles numpy.core, Python 3.13 pathlib._local: the same values under other names."""
    content = {"model": tensors, "best": np.float64(1.5), "path": pathlib.PurePosixPath("a")}
    torch.save(content, tmp_path / "run.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "run.pth").read_bytes()
    ours = b"numpy._core.multiarray" if b"numpy._core" in old else b"numpy.core.multiarray"
    other = b"numpy.core.multiarray" if ours == b"numpy._core.multiarray" else b"numpy._core.multiarray"
    assert ours in old
    for changed in (old.replace(ours, other), old.replace(b"cpathlib\n", b"cpathlib._local\n")):
        (tmp_path / "run.pth").write_bytes(changed)
        assert loads(tmp_path / "run.pth", tensors)


class Call:
    """Pickles into a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Built(argparse.Namespace):
    """Pickles into a Namespace whose state holds a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return argparse.Namespace, (), {"x": Call(open, *self.arguments)}


@pytest.mark.parametrize("place", ["args", "namespace", "default", "array", "path", "key", "weights", "whole"])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_runs_wherever_it_hides(place, zipped, tensors, tmp_path):
    """Inside what is allowed too: a Namespace's state, a defaultdict's factory and items, an array of objects."""
    ran = str(tmp_path / "ran")
    evil = Call(open, ran, "w")
    array = np.empty(1, dtype=object)
    array[0] = evil
    content: Any = {
        "args": {"model": tensors, "args": evil},
        "namespace": {"model": tensors, "args": Built(arguments=(ran, "w"))},
        "default": {"model": tensors, "d": Call(collections.defaultdict, Call(open, ran, "w"))},
        "array": {"model": tensors, "a": array},
        "path": {"model": tensors, "p": Call(pathlib.PurePosixPath, evil)},
        "key": {"model": tensors, "k": collections.defaultdict(int, {1: evil})},
        "weights": {"model": {**tensors, "x": evil}},
        "whole": evil,
    }[place]
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    for load in (
        lambda: zoo.create_model(NAME, checkpoint_path=tmp_path / "evil.pth"),
        lambda: zoo.convert(tmp_path / "evil.pth", tmp_path / "out", name=NAME),
    ):
        with pytest.raises(ValueError, match=r"evil\.pth is not a checkpoint of tensors alone: .*nothing was loaded"):
            load()
    assert not Path(ran).exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, __import__, np.fromfile, np.load, Path.unlink, print])
def test_functions_are_refused(function, tensors, tmp_path):
    torch.save({"model": tensors, "x": Call(function, "1")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="is not a checkpoint of tensors alone"):
        read_state_dict(tmp_path / "evil.pth")


PREFIXES = [
    "module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.", "model.module.",
    "_orig_mod.module.", "model.module._orig_mod.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_of_wrappers(prefix, tensors, tmp_path):
    wrapped = {prefix + key: tensor for key, tensor in tensors.items()}
    torch.save(wrapped, tmp_path / "run.pth")
    assert loads(tmp_path / "run.pth", tensors)
    lightning = {f"model.{key}": tensor for key, tensor in wrapped.items()}
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": lightning}, tmp_path / "last.ckpt")
    assert loads(tmp_path / "last.ckpt", tensors)
    model = zoo.create_model(NAME, depth=1)
    zoo.load_weights(model, wrapped)
    assert torch.equal(model.head.weight, tensors["head.weight"])


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_names_of_wrappers_around_a_published_layout(prefix, tmp_path):
    """Whose own names may begin with "model." throughout: a tied head is not in the file."""
    model = zoo.create_model("falcon_h1_nano", tie_embeddings=True)
    published = zoo.checkpoints.convert.falcon_h1.to_transformers(model.state_dict())
    published = {f"{prefix}{key}": t for key, t in published.items() if key != "lm_head.weight"}
    torch.save(published, tmp_path / "run.pth")
    loaded = zoo.create_model("falcon_h1_nano", tie_embeddings=True, checkpoint_path=tmp_path / "run.pth").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


def test_parts_that_were_compiled_or_recomputed(tensors, tmp_path):
    names = {key: key.replace("blocks.0.", "blocks.0._orig_mod._checkpoint_wrapped_module.") for key in tensors}
    torch.save({names[key]: tensor for key, tensor in tensors.items()}, tmp_path / "run.pth")
    assert loads(tmp_path / "run.pth", tensors)
    torch.save(tensors | {names[key]: tensor for key, tensor in tensors.items()}, tmp_path / "twice.pth")
    with pytest.raises(ValueError, match="a model and a wrapper of it"):
        zoo.create_model(NAME, depth=1, checkpoint_path=tmp_path / "twice.pth")


def test_averages_of_our_own_checkpoints(tensors, tmp_path):
    """One rule: the averaged model is the one that is evaluated, exported and loaded; both are there on request."""
    average = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    both = {f"model.{k}": t for k, t in tensors.items()} | {f"average.{k}": t for k, t in average.items()}
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": both}, tmp_path / "last.ckpt")
    assert loads(tmp_path / "last.ckpt", average)
    for ema, expected in ((None, average), (True, average), (False, tensors)):
        read = read_state_dict(tmp_path / "last.ckpt", ema)
        assert read.keys() == expected.keys() and all(torch.equal(read[key], expected[key]) for key in expected)
    plain = {f"model.{key}": tensor for key, tensor in tensors.items()}
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": plain}, tmp_path / "plain.ckpt")
    assert loads(tmp_path / "plain.ckpt", tensors)
    with pytest.raises(ValueError, match="holds no averaged weights: its model was trained without ema"):
        read_state_dict(tmp_path / "plain.ckpt", ema=True)


def test_conversion_takes_the_average_of_our_own_checkpoints(tmp_path):
    model = zoo.create_model("transformer_nano").state_dict()
    both = {f"model.{k}": t for k, t in model.items()} | {f"average.{k}": t + 1 for k, t in model.items()}
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": both}, tmp_path / "last.ckpt")
    for ema, shift in ((None, 1), (True, 1), (False, 0)):
        zoo.convert(tmp_path / "last.ckpt", tmp_path / "out", name="transformer_nano", ema=ema)
        converted = zoo.create_model(f"local-dir:{tmp_path / 'out'}").state_dict()
        assert torch.equal(converted["norm.weight"], model["norm.weight"] + shift)
