"""Folders: saved over, in shards, refused where they could not be loaded again; nothing of a failed save stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import zoo
from zoo.checkpoints import read_state_dict, write
from zoo.checkpoints.write import COMPANIONS


def in_shards(folder: Path, kind: str = "safetensors") -> Any:
    """A model of transformers, saved by it in shards."""
    options = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_mambapy": False}
    config = transformers.MambaConfig(**options)
    model = transformers.MambaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="20KB")
    if kind == "bin":
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for file in set(index["weight_map"].values()):
            torch.save(load_file(folder / file), folder / file.replace(".safetensors", ".bin"))
            (folder / file).unlink()
        (folder / "model.safetensors.index.json").unlink()
        index["weight_map"] = {k: v.replace(".safetensors", ".bin") for k, v in index["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return model


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_saving_over_shards(kind, tmp_path):
    in_shards(tmp_path, kind)
    assert len(list(tmp_path.glob(f"*-of-*.{kind}"))) > 1
    (tmp_path / "tokenizer.json").write_text("{}")
    model: Any = zoo.create_model(f"local-dir:{tmp_path}")
    nn.init.constant_(model.norm.weight, 7.0)
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}")
    assert (again.norm.weight == 7).all()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.safetensors", "config.json", "README.md", "tokenizer.json", "generation_config.json"}


def test_a_save_that_ended_before_the_old_index_went(tmp_path):
    """The whole file is the newer one, as transformers takes it."""
    in_shards(tmp_path)
    tensors = {key: torch.full_like(tensor, 3.0) for key, tensor in read_state_dict(tmp_path).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert (read_state_dict(tmp_path)["backbone.norm_f.weight"] == 3).all()


def test_old_pickles_go_and_nothing_else(tmp_path):
    model: Any = zoo.create_model("vit_nano", depth=1)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for name in ("notes.txt", "other.safetensors", "pytorch_model.bin.bak"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    outside = tmp_path.parent / "outside.safetensors"
    outside.write_text("mine")
    zoo.save_model(model, tmp_path)
    assert outside.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors", "config.json", "README.md", "notes.txt", "other.safetensors", "pytorch_model.bin.bak"
    }  # fmt: skip


@pytest.mark.parametrize("size", [200_000, "200KB", "0.2 MB", "195KiB"])
def test_in_shards_and_back(size, tmp_path):
    model: Any = zoo.create_model("vit_nano")
    zoo.save_model(model, tmp_path)
    zoo.save_model(model, tmp_path, max_shard_size=size)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size < 210_000 for path in shards) and not (tmp_path / "model.safetensors").exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    again = zoo.create_model(f"local-dir:{tmp_path}").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in model.state_dict().items())
    zoo.save_model(model, tmp_path, max_shard_size="1GB")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}


@pytest.mark.parametrize("size", [0, -5, "5XB", "GB", 1.5, True])
def test_sizes_of_shards_that_are_none(size, tmp_path):
    with pytest.raises(ValueError, match="max_shard_size must be bytes, or a text such as '5GB'"):
        zoo.save_model(zoo.create_model("vit_nano", depth=1), tmp_path / "out", max_shard_size=size)


def test_shards_that_disagree(tmp_path):
    zoo.save_model(zoo.create_model("vit_nano"), tmp_path, max_shard_size="200KB")
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(ValueError, match=r"model-00002.* which another shard holds too"):
        zoo.create_model(f"local-dir:{tmp_path}")


def replaced_head(model: Any) -> None:
    model.head = nn.Linear(64, 3)


def grown_vocabulary(model: Any) -> None:
    model.embedding = nn.Embedding(300, 128)
    model.head = nn.Linear(128, 300, bias=False)


def untied_head(model: Any) -> None:
    model.head.weight = nn.Parameter(model.head.weight.clone())


def with_an_adapter(model: Any) -> None:
    model.head = nn.Sequential(model.head, nn.Linear(256, 256))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit_nano", replaced_head, r"head\.weight has shape \(3, 64\), its configuration \(10, 64\)"),
        ("mamba_nano", grown_vocabulary, r"embedding\.weight has shape \(300, 128\)"),
        ("mamba_nano", untied_head, r"head\.weight is not tied"),
        ("mamba_nano", with_an_adapter, r"head\.0\.weight is not of its configuration"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused(name, change, message, tmp_path):
    model = zoo.create_model(name)
    change(model)
    with pytest.raises(ValueError, match=rf"{message}[^\n]*reset_classifier[^\n]*torch\.save") as error:
        zoo.save_model(model, tmp_path / "out")
    assert "nothing was written" in str(error.value) and not (tmp_path / "out").exists()


def test_what_the_configuration_knows_is_saved(tmp_path):
    model: Any = zoo.create_model("vit_nano")
    model.reset_classifier(3)
    zoo.save_model(model, tmp_path / "head")
    assert torch.equal(zoo.create_model(f"local-dir:{tmp_path / 'head'}").head.weight, model.head.weight)
    untied = zoo.create_model("mamba_nano", tie_embeddings=False)
    zoo.save_model(torch.compile(untied), tmp_path / "compiled")
    loaded = zoo.create_model(f"local-dir:{tmp_path / 'compiled'}").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in untied.state_dict().items())


@pytest.mark.parametrize("failing", ["save", "rename"])
def test_a_failed_save_leaves_the_folder_as_it_was(failing, tmp_path, monkeypatch):
    model: Any = zoo.create_model("vit_nano", depth=1)
    zoo.save_model(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    target = (write, "write_json") if failing == "save" else (write.os, "replace")
    monkeypatch.setattr(*target, full)
    nn.init.zeros_(model.head.weight)
    with pytest.raises(OSError, match="No space left"):
        zoo.save_model(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Dead(BaseException):
    pass


def killed_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on no name on the disk changes any more, as when a process is killed."""
    left = [calls]

    def dying(do: Callable[..., Any], *args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Dead
        return do(*args, **options)

    for name in ("replace", "rename", "link", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, partial(dying, getattr(os, name)))


@pytest.mark.parametrize("size", [None, "100KB"])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(size, tmp_path, monkeypatch):
    """At any moment, and though their tensors fit both configurations; the next save finds its way."""
    old: Any = zoo.create_model("vit_nano", depth=1, num_heads=4)
    new: Any = zoo.create_model("vit_nano", depth=1, num_heads=2)
    found, calls = [], 0
    while not found or found[-1] != "saved":
        folder = tmp_path / str(calls)
        zoo.save_model(old, folder, max_shard_size=size)
        with monkeypatch.context() as patched:
            killed_after(calls, patched)
            try:
                zoo.save_model(new, folder, max_shard_size="120KB" if size else None)
                found.append("saved")
            except Dead:
                found.append("killed")
        read: Any = zoo.create_model(f"local-dir:{folder}")
        whole = new if read.config.num_heads == 2 else old
        assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in read.state_dict().items()), calls
        assert whole is new or found[-1] == "killed"
        assert zoo.create_model("vit_nano", checkpoint_path=folder).config == whole.config
        zoo.save_model(old, folder)
        assert zoo.create_model(f"local-dir:{folder}").config == old.config
        calls += 1
    assert len(found) > 12
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}


def test_tokenizers_come_along(tmp_path):
    source = zoo.save_model(zoo.create_model("mamba2_nano"), tmp_path / "source")
    for name in COMPANIONS:
        (source / name).write_text(f"{name} of the source")
    (source / "secret.txt").write_text("not of the model")
    zoo.convert(source, tmp_path / "theirs", to="transformers")
    model = zoo.create_model(f"local-dir:{tmp_path / 'theirs'}")
    zoo.save_model(model, tmp_path / "again")
    for folder in ("theirs", "again"):
        for name in COMPANIONS:
            assert (tmp_path / folder / name).read_text() == f"{name} of the source"
        assert not (tmp_path / folder / "secret.txt").exists()
    (tmp_path / "again" / "tokenizer.json").write_text("another")
    zoo.save_model(model, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_text() == "another"


def test_a_tokenizer_is_pushed(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "right")
    folder = zoo.save_model(zoo.create_model("vit_nano"), tmp_path, max_shard_size="200KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "secret.txt").write_text("not of the model")
    from zoo.checkpoints.publish import push

    push(folder, "owner/pushed")
    assert set(hub.repos["owner/pushed"].files) == {path.name for path in folder.iterdir()} - {"secret.txt"}


@pytest.mark.parametrize(("stored", "expected"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)])
def test_dtype_of_the_weights(stored, expected, tmp_path):
    zoo.save_model(zoo.create_model("mamba2_nano", dtype=stored), tmp_path)
    model: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype="auto")
    assert model.embedding.weight.dtype == expected and model.blocks[0].mixer.A_log.dtype == torch.float32
    assert zoo.create_model(f"local-dir:{tmp_path}").embedding.weight.dtype == torch.float32
    assert zoo.create_model("mamba2_nano", dtype="auto").embedding.weight.dtype == torch.float32


def test_ids_that_end_a_text_stay_in_config_json(tmp_path):
    """From transformers' folder through ours and back, by saving and by converting."""
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        bos_token_id=3, eos_token_id=[4, 5], pad_token_id=6,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").unlink()
    zoo.save_model(zoo.create_model(f"local-dir:{tmp_path / 'theirs'}"), tmp_path / "ours")  # type: ignore[arg-type]
    zoo.convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    for name in ("theirs", "ours", "back"):
        content = zoo.checkpoints.read_config(tmp_path / name)
        assert [content[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [3, [4, 5], 6]
