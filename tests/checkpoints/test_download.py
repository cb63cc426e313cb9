"""Weights from a Hub and from addresses: found, verified, resumed, refused; never random instead."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.checkpoints import download
from zoo.checkpoints.download import DownloadError
from zoo.checkpoints.index import INDEX, Weights
from zoo.cli import main


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return zoo.create_model("vit_nano", depth=1)


@pytest.fixture
def publish(hub, model, tmp_path, monkeypatch) -> Callable[..., bytes]:
    """Put vit_nano's weights on the server and into the index as vit_nano.there; returns the file."""

    def put(**known: Any) -> bytes:
        save_file(model.state_dict(), tmp_path / "file")
        content = (tmp_path / "file").read_bytes()
        name = known.pop("file", "model.safetensors")
        if known.pop("address", False):
            hub.plain["files/" + name] = content
            weights = Weights(url=f"{hub.url}/files/{name}", fields=(("depth", 1),), **known)
        else:
            hub.add("owner/vit", {name: content})
            weights = Weights(repo="owner/vit", file=name, fields=(("depth", 1),), **known)
        monkeypatch.setitem(INDEX, "vit_nano", {"there": weights})
        return content

    return put


def load(**options: Any) -> Any:
    return zoo.create_model("vit_nano.there", pretrained=True, **options)


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(autouse=True)
def known_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.registry.lookup("vit_nano")
    monkeypatch.setitem(zoo.registry.entries(), "vit_nano", dataclasses.replace(entry, tags=(*entry.tags, "there")))


@pytest.mark.parametrize("address", [False, True])
def test_downloads_once_and_loads(publish, hub, model, address):
    content = publish(address=address)
    assert same(load(), model)
    assert same(load(), model) and len(hub.requests) == 1
    (known,) = download.record().values()
    assert known["sha256"] == hashlib.sha256(content).hexdigest() and known["name"] == "vit_nano.there"
    assert load(num_classes=3).head.weight.shape[0] == 3
    assert zoo.prefetch("vit_nano.there") == Path(known["path"])


def test_offline_after_the_first_time(publish, monkeypatch, model):
    publish()
    load()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert same(load(), model)


@pytest.mark.parametrize("address", [False, True])
def test_offline_and_not_there(publish, monkeypatch, address):
    publish(address=address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"vit_nano\.there.*`zoo download vit_nano\.there`"):
        load()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ((403, "GatedRepo"), "is gated: accept its terms on the Hub, then set HF_TOKEN"),
        ((401, "GatedRepo"), "is gated"),
        ((401, "RepoNotFound"), "no such repository, or it is private"),
        ((404, "RepoNotFound"), "no such repository"),
        ((403, ""), "403 Forbidden"),
    ],
)
def test_refused(publish, hub, status, message):
    publish()
    hub.repos["owner/vit"].status = status
    with pytest.raises(DownloadError, match=message):
        load()


def test_gone(publish, hub):
    publish(revision="f" * 40)
    with pytest.raises(DownloadError, match=r"no such revision \(any more\)"):
        load()
    publish()
    hub.repos["owner/vit"].files.clear()
    with pytest.raises(DownloadError, match=r"model\.safetensors of owner/vit: there is no such file"):
        load()


@pytest.mark.parametrize("address", [False, True])
def test_a_hash_that_differs_removes_the_file(publish, address, model):
    publish(sha256="0" * 64, address=address)
    with pytest.raises(DownloadError, match=r"has the sha256 [0-9a-f]{64}, expected 0{64}; the file was removed"):
        load()
    caches = download.cache_folder().parent, Path(huggingface_hub.constants.HF_HUB_CACHE)
    left = [path for cache in caches for path in cache.rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 5000 for path in left)
    publish(address=address)
    assert same(load(), model)


def test_a_hash_begins_as_the_name_of_the_release_says(publish, model):
    content = publish(address=True)
    publish(address=True, sha256_prefix=hashlib.sha256(content).hexdigest()[:8])
    assert same(load(), model)
    publish(address=True, sha256_prefix="12345678", file="other.safetensors")
    with pytest.raises(DownloadError, match="expected 12345678"):
        load()


def test_a_file_that_changed_since_it_was_recorded(publish, hub, model):
    publish(address=True)
    path = zoo.prefetch("vit_nano.there")
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    assert download.damaged() == [f"{hub.url}/files/model.safetensors"]
    with pytest.raises(DownloadError, match="the file was removed"):
        load()
    assert same(load(), model)


def test_a_connection_that_drops_is_resumed(publish, hub, model):
    content = publish(address=True)
    hub.cut["files/model.safetensors"] = [10_000, 5_000]
    assert same(load(), model)
    ranges = [wanted for _, wanted in hub.requests]
    assert ranges == [None, "bytes=10000-", "bytes=15000-"] and len(content) > 15_000
    assert [path.name for path in download.cache_folder().iterdir() if path.suffix == ".part"] == []


def test_a_connection_that_always_drops_keeps_what_arrived(publish, hub, model):
    publish(address=True)
    hub.cut["files/model.safetensors"] = [100] * download.ATTEMPTS
    with pytest.raises(DownloadError, match=r"the connection ended after 500 of .* what arrived is kept"):
        load()
    hub.requests.clear()
    assert same(load(), model) and hub.requests[0][1] == "bytes=500-"


def test_a_part_of_another_file_begins_anew(publish, hub, model):
    content = publish(address=True)
    download.cache_folder().mkdir(parents=True)
    (download.cache_folder() / "model.safetensors.part").write_bytes(b"x" * (len(content) + 5))
    assert same(load(), model)


def test_a_truncated_body_from_the_hub(publish, hub):
    publish()
    hub.cut["model.safetensors"] = [3000] * 20
    with pytest.raises(DownloadError, match=r"model\.safetensors of owner/vit"):
        load()


def test_no_room(publish, monkeypatch):
    publish(address=True)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_continue", full)
    with pytest.raises(
        DownloadError, match=r"cannot be written: .*No space left on device; make room, or set ZOO_CACHE"
    ):
        load()


def test_weights_of_another_model(publish, hub):
    publish()
    with pytest.raises(ValueError, match=r"vit_nano\.there does not fit the model; nothing was loaded"):
        load(depth=2)


def test_unknown_tags():
    with pytest.raises(ValueError, match=r"mamba_130m has no weights 'pil', did you mean 'pile'"):
        zoo.create_model("mamba_130m.pil", pretrained=True)
    with pytest.raises(ValueError, match="no published weights of transformer_130m"):
        zoo.create_model("transformer_130m", pretrained=True)


def test_names_that_lead_out_of_the_folder(hub):
    for name in ("../x", "/etc/passwd", "a/../../b", "..\\x", "c:x"):
        with pytest.raises(ValueError, match="leads out of its folder"):
            Weights(repo="owner/name", file=name)
        index = json.dumps({"weight_map": {"a": name}}).encode()
        hub.add("owner/evil", {"config.json": b"{}", "model.safetensors.index.json": index})
        with pytest.raises(ValueError, match="leads out of its folder"):
            zoo.create_model("hf-hub:owner/evil")
        hub.repos["owner/evil"].commit = hashlib.sha1(name.encode()).hexdigest()


@pytest.mark.parametrize("layout", ["whole", "shards", "pickle"])
@pytest.mark.parametrize("revision", ["", "@0123456789abcdef0123456789abcdef01234567"])
def test_repositories_on_the_hub(hub, model, tmp_path, layout, revision):
    folder = zoo.save_model(model, tmp_path / "saved")
    files = {"config.json": (folder / "config.json").read_bytes()}
    tensors = load_file(folder / "model.safetensors")
    if layout == "whole":
        files["model.safetensors"] = (folder / "model.safetensors").read_bytes()
    elif layout == "pickle":
        torch.save(tensors, tmp_path / "pickle")
        files["pytorch_model.bin"] = (tmp_path / "pickle").read_bytes()
    else:
        names, half = sorted(tensors), len(tensors) // 2
        where = {}
        for number, part in enumerate((names[:half], names[half:]), 1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, tmp_path / file)
            files[file], where = (tmp_path / file).read_bytes(), where | dict.fromkeys(part, file)
        files["model.safetensors.index.json"] = json.dumps({"weight_map": where}).encode()
    hub.add("owner/mine", files)
    assert same(zoo.create_model(f"hf-hub:owner/mine{revision}"), model)
    assert len(download.record()) == (2 if layout == "shards" else 1)


def test_repositories_without_weights_and_wrong_names(hub):
    hub.add("owner/empty", {"config.json": b"{}"})
    with pytest.raises(DownloadError, match=r"owner/empty has none of model\.safetensors, pytorch_model\.bin"):
        zoo.create_model("hf-hub:owner/empty")
    with pytest.raises(DownloadError, match="no such repository"):
        zoo.create_model("hf-hub:owner/missing")
    with pytest.raises(DownloadError, match="Repo id must"):
        zoo.create_model("hf-hub:a/b/c")
    with pytest.raises(ValueError, match="hf-hub: already names the weights"):
        zoo.create_model("hf-hub:owner/empty", pretrained=True)


def _fetch(url: str) -> str:
    return str(download.fetch(Weights(url=url), "name"))


def test_processes_fetch_once(publish, hub):
    publish(address=True)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        paths = pool.map(_fetch, [f"{hub.url}/files/model.safetensors"] * 3)
    assert len(set(paths)) == 1 and len(hub.requests) == 1


def test_commands(publish, hub, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    publish(address=True)
    assert main(["download", "vit_nano.there"]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert main(["cache", "list"]) == 0 and "vit_nano.there" in capsys.readouterr().out
    assert main(["cache", "verify"]) == 0 and "1 of 1 files" in capsys.readouterr().out
    assert main(["cache", "prune"]) == 0 and len(download.record()) == 1
    zoo.prefetch("vit_nano.there").write_bytes(b"")
    assert main(["cache", "verify"]) == 1 and "damaged or gone: vit_nano.there" in capsys.readouterr().out
    assert main(["cache", "prune"]) == 0 and not download.record()
    load()
    assert main(["cache", "prune", "vit_nano.there"]) == 0 and not download.record()
    assert main(["cache", "prune", "other"]) == 2 and "nothing is recorded of other" in capsys.readouterr().err
    assert main(["download", "vit_nano.ther"]) == 2 and "did you mean 'there'" in capsys.readouterr().err


def test_push_and_load_back(hub, model, monkeypatch, tmp_path, capsys):
    folder = zoo.save_model(model, tmp_path / "saved", notes={"licence": "apache-2.0", "metric": "98 % accuracy"})
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "| metric | 98 % accuracy |" in card and "2010.11929" in card
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert main(["push", str(folder), "owner/pushed"]) == 2
    assert "set HF_TOKEN to a token that may write" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert main(["push", str(folder), "owner/pushed"]) == 0
    assert set(hub.repos["owner/pushed"].files) == {"config.json", "model.safetensors", "README.md"}
    assert same(zoo.create_model("hf-hub:owner/pushed"), model)
    (folder / "model.safetensors").unlink()
    assert main(["push", str(folder), "owner/pushed"]) == 2
    assert "lacks model.safetensors or pytorch_model.bin" in capsys.readouterr().err.replace("\n", " ")


def test_the_index_is_of_registered_models():
    for name, sets in INDEX.items():
        entry = zoo.registry.lookup(name)
        assert set(sets) <= set(entry.tags), name
        for tag, weights in sets.items():
            dataclasses.replace(entry.configure(), **dict(weights.fields))
            known = entry.weights[tag]
            assert known.licence and known.source and bool(known.tokenizer) == (entry.task == "language"), name
    assert zoo.create_model("vim_tiny", device="meta", stride=8).patch_embed.grid_size == (27, 27)
    assert set(INDEX) <= set(zoo.list_models(pretrained=True))
