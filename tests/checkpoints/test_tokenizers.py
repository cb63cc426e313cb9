"""Tokenizers come with the weights: downloaded, saved, pushed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

import zoo
from cases.tokenizers import write_tokenizer
from zoo.checkpoints.download import DownloadError
from zoo.checkpoints.index import INDEX, Weights
from zoo.cli import main

TALK = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and its tokenizer."""
    folder = zoo.save_model(zoo.create_model("mamba_nano", depth=1, vocab_size=320), tmp_path / "folder")
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def same(tokenizer: Any) -> bool:
    """Whether it is that of the fixture."""
    return tokenizer.eos_ids == (3, 2) and tokenizer.decode(tokenizer.chat(TALK)) == "Hello!"


def test_from_a_repository_with_the_weights_and_back(hub, folder, tmp_path, monkeypatch):
    hub.add("owner/model", files(folder))
    model = zoo.create_model("hf-hub:owner/model")
    count = len(hub.requests)
    assert same(zoo.load_tokenizer("hf-hub:owner/model")) and len(hub.requests) == count, "it came with the weights"
    saved = zoo.save_model(model, tmp_path / "again")
    assert same(zoo.load_tokenizer(saved))
    from zoo.checkpoints.publish import push

    monkeypatch.setenv("HF_TOKEN", "right")
    push(saved, "owner/pushed")
    assert same(zoo.load_tokenizer("hf-hub:owner/pushed"))


@pytest.mark.parametrize("apart", [False, True])
def test_of_a_published_name(apart, hub, folder, tmp_path, monkeypatch):
    """Beside the weights, or in a repository of its own; downloaded before it is needed."""
    held = files(folder)
    weights = {name: held[name] for name in ("model.safetensors", "config.json")}
    hub.add("owner/model", weights if apart else held)
    hub.add("owner/words", {name: content for name, content in held.items() if name not in weights})
    entry = dataclasses.replace(zoo.registry.lookup("mamba_nano"), tags=("there",))
    monkeypatch.setitem(zoo.registry.entries(), "mamba_nano", entry)
    known = Weights(repo="owner/model", tokenizer="owner/words" if apart else None)
    monkeypatch.setitem(INDEX, "mamba_nano", {"there": known})
    assert main(["download", "mamba_nano"]) == 0
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("mamba_nano", "mamba_nano.there"):
        assert same(zoo.load_tokenizer(name))
    saved = zoo.save_model(zoo.create_model("mamba_nano", pretrained=True), tmp_path / "saved")
    assert same(zoo.load_tokenizer(saved))


def test_a_repository_without_a_tokenizer(hub, tmp_path):
    model = zoo.create_model("mamba_nano", depth=1)
    hub.add("owner/model", files(zoo.save_model(model, tmp_path)))
    loaded = zoo.create_model("hf-hub:owner/model")
    assert torch.equal(loaded.embedding.weight, model.embedding.weight)  # type: ignore[union-attr]
    assert zoo.load_tokenizer("hf-hub:owner/model").encode("a") == [0, 97], "of bytes, by its configuration"
    hub.add("owner/empty", {})
    with pytest.raises(DownloadError, match=r"owner/empty has neither tokenizer.json nor config.json"):
        zoo.load_tokenizer("hf-hub:owner/empty")
    with pytest.raises(DownloadError, match="no such repository"):
        zoo.load_tokenizer("hf-hub:owner/nothing")


def test_offline_says_what_to_do(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"no tokenizer.json of owner/model here, and HF_HUB_OFFLINE is set"):
        zoo.load_tokenizer("hf-hub:owner/model")
