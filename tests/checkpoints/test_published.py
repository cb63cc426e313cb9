"""What is published beside weights decides what a name computes: stand-in repositories for names of the index."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.checkpoints.download import DownloadError
from zoo.checkpoints.index import INDEX, Weights
from zoo.layers.attention import Llama3

SMALL: dict[str, dict[str, Any]] = {  # a name of the index -> a nano-sized stand-in with options unlike the name's own
    "falcon_h1_1_5b": {"name": "falcon_h1_nano", "key_multiplier": 0.26, "mlp_multipliers": (0.7, 0.3)},
    "mamba2_130m": {"name": "mamba2_nano", "dt_limit": (0.01, 0.2)},
    "deepseek_v3_671b": {"name": "deepseek_nano", "mtp_depth": 1, "routed_scale": 1.7},
    "qwen3_0_6b": {"name": "transformer_nano", "qkv_bias": True, "rope_scaling": Llama3(4.0, 16)},
    "vit_tiny_patch16_224": {
        "name": "vit_tiny_patch16_224", "img_size": 32, "dim": 24, "depth": 1, "mean": (0.1, 0.2, 0.3)
    },
}  # fmt: skip


def publish(hub: Any, name: str, tag: str, folder: Path, without: str = "") -> None:
    """The files of a folder in the repository that the index names."""
    weights = INDEX[name][tag]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != without}
    if weights.file and weights.file not in files:
        tensors = zoo.checkpoints.read_state_dict(folder)
        torch.save(tensors, folder / "pickle")
        files[weights.file] = (folder / "pickle").read_bytes()
    hub.add(weights.repo, files)


def stand_in(name: str, folder: Path) -> Any:
    """The small model, written where its family has one in the layout of its publishers."""
    options = dict(SMALL[name])
    model: Any = zoo.create_model(options.pop("name"), **options).eval()
    layout = "timm" if name.startswith("vit") else "transformers"
    zoo.convert(zoo.save_model(model, folder / "zoo"), folder / "published", to=layout)
    return model


@pytest.mark.parametrize("name", SMALL)
def test_the_configuration_beside_the_weights_decides(name, hub, tmp_path):
    expected = stand_in(name, tmp_path)
    tag = next(iter(INDEX[name]))
    publish(hub, name, tag, tmp_path / "published")
    loaded: Any = zoo.create_model(name, pretrained=True).eval()
    direct: Any = zoo.create_model(f"hf-hub:{INDEX[name][tag].repo}").eval()
    assert loaded.config_name == name
    assert loaded.config == direct.config
    image = name.startswith("vit")
    x = torch.randn(2, 3, 32, 32) if image else torch.randint(0, 256, (2, 12))
    with zoo.kernels.implementation("reference"):  # nothing to compile in this test's own cache
        assert torch.equal(loaded(x), direct(x))
        torch.testing.assert_close(loaded(x), expected(x))


@pytest.mark.parametrize("tag", ["pile", "pile_original"])
def test_tags_of_both_layouts(tag, hub, tmp_path):
    model = zoo.create_model("mamba_nano", dt_rank=5)
    zoo.convert(zoo.save_model(model, tmp_path / "zoo"), tmp_path / "published", to="transformers")
    publish(hub, "mamba_130m", tag, tmp_path / "published")
    loaded: Any = zoo.create_model(f"mamba_130m.{tag}", pretrained=True)
    assert loaded.config.dt_rank == 5 and loaded.config.dim == 128


def test_the_caller_wins_where_the_tensors_fit(hub, tmp_path):
    stand_in("falcon_h1_1_5b", tmp_path)
    publish(hub, "falcon_h1_1_5b", "base", tmp_path / "published")
    loaded: Any = zoo.create_model("falcon_h1_1_5b", pretrained=True, key_multiplier=0.5)
    assert loaded.config.key_multiplier == 0.5 and loaded.config.mlp_multipliers == (0.7, 0.3)
    with pytest.raises(ValueError, match=r"falcon_h1_1_5b\.base does not fit the model; nothing was loaded"):
        zoo.create_model("falcon_h1_1_5b", pretrained=True, mlp_dim=64)


@pytest.mark.parametrize("name", ["falcon_h1_1_5b", "vit_tiny_patch16_224"])
def test_weights_that_nothing_describes_are_an_error(name, hub, tmp_path):
    stand_in(name, tmp_path)
    publish(hub, name, next(iter(INDEX[name])), tmp_path / "published", without="config.json")
    with pytest.raises(DownloadError, match=r"has no config\.json, without which its tensors can mean anything"):
        zoo.create_model(name, pretrained=True)


def test_a_description_of_another_family_is_an_error(hub, tmp_path):
    stand_in("mamba2_130m", tmp_path)
    publish(hub, "falcon_h1_1_5b", "base", tmp_path / "published")
    with pytest.raises(ValueError, match="it is of the family 'mamba2', and falcon_h1_1_5b of 'falcon_h1'"):
        zoo.create_model("falcon_h1_1_5b", pretrained=True)


def test_files_of_the_authors_own_need_no_description(hub, tmp_path, monkeypatch):
    """A config.json beside them that is another library's does not matter; one of the zoo does."""
    options = {"dim": 16, "depth": 1, "img_size": 64, "num_classes": 7}
    model = zoo.create_model("vim_tiny", stride=8, **options)
    torch.save({"model": model.state_dict()}, tmp_path / "vim.pth")
    weights = Weights(repo="owner/vim", file="vim.pth", fields=(("stride", 8),))
    monkeypatch.setitem(INDEX, "vim_tiny", {"in1k": weights})
    own = json.dumps({"architecture": "vim_tiny", "config": options}).encode()
    for content in (None, b'{"model_type": "unheard of"}', own):
        files = {"vim.pth": (tmp_path / "vim.pth").read_bytes()} | ({"config.json": content} if content else {})
        hub.add("owner/vim", files).commit = format(len(content or b""), "040x")
        loaded: Any = zoo.create_model("vim_tiny", pretrained=True, **({} if content == own else options))
        assert loaded.config == model.config
        assert torch.equal(loaded.pos_embed, model.pos_embed)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_a_tag_applies_without_its_weights(size):
    model: Any = zoo.create_model(f"vim_{size}.in1k_stride8", device="meta")
    assert model.config.stride == 8 and model.pos_embed.shape[1] == 730
    assert zoo.create_model(f"vim_{size}.in1k_stride8", stride=16, device="meta").pos_embed.shape[1] == 197


def test_a_tag_applies_to_a_file(tmp_path):
    model = zoo.create_model("vim_tiny.in1k_stride8", depth=1)
    torch.save(model.state_dict(), tmp_path / "vim.pth")
    loaded = zoo.create_model("vim_tiny.in1k_stride8", depth=1, checkpoint_path=tmp_path / "vim.pth")
    assert torch.equal(loaded.pos_embed, model.pos_embed)


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_the_configuration_beside_a_checkpoint_decides(place, tmp_path):
    """By ``checkpoint_path`` as well, for a folder and for the file in it; a file of another name is alone."""
    model: Any = stand_in("falcon_h1_1_5b", tmp_path)
    path = tmp_path / "published" / place
    loaded: Any = zoo.create_model("falcon_h1_nano", checkpoint_path=path)
    assert loaded.config.key_multiplier == 0.26
    assert zoo.create_model("falcon_h1_nano", checkpoint_path=path, key_multiplier=0.5).config.key_multiplier == 0.5
    torch.save(model.state_dict(), tmp_path / "published" / "mine.pth")
    alone: Any = zoo.create_model("falcon_h1_nano", checkpoint_path=tmp_path / "published" / "mine.pth")
    assert alone.config.key_multiplier == 1.0
    if not place:
        with pytest.raises(ValueError, match="it is of the family 'falcon_h1', and mamba2_nano of 'mamba2'"):
            zoo.create_model("mamba2_nano", checkpoint_path=path)


def test_prefetch_brings_the_description(hub, tmp_path, monkeypatch):
    stand_in("falcon_h1_1_5b", tmp_path)
    publish(hub, "falcon_h1_1_5b", "base", tmp_path / "published")
    assert (zoo.prefetch("falcon_h1_1_5b.base") / "config.json").exists()


def test_every_entry_is_described_or_its_file_the_authors_own():
    for name, sets in INDEX.items():
        for tag, weights in sets.items():
            assert weights.in_layout or weights.file or weights.url, (name, tag)
            dataclasses.replace(zoo.registry.lookup(name).configure(), **dict(weights.fields))


@pytest.mark.parametrize(("name", "tag"), [("mcunet_in0", "in1k"), ("mcunet_vww0", "vww"), ("vovnet39a", "in1k")])
def test_files_of_addresses(name, tag, hub, tmp_path, monkeypatch):
    """Addresses with a query too; what the authors' networks differ in comes with the tag."""
    small = {"dims": (6, 8, 8, 12, 12), "mid_dims": (0, 4, 4, 6, 6), "stem_dim": 8} if name == "vovnet39a" else {}
    model: Any = zoo.create_model(f"{name}.{tag}", **small)
    weights = INDEX[name][tag]
    published = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"state_dict": published}, tmp_path / "file.pth")
    file = weights.url.rpartition("/")[2].partition("?")[0]
    hub.plain[file] = (tmp_path / "file.pth").read_bytes()
    monkeypatch.setitem(INDEX[name], tag, dataclasses.replace(weights, url=f"{hub.url}/{file}?dl=1"))
    loaded: Any = zoo.create_model(name, pretrained=True, **small)
    assert loaded.config == model.config and loaded.config.num_classes == (2 if tag == "vww" else 1000)
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    assert zoo.prefetch(f"{name}.{tag}").name == file and file.endswith(".pth")
    if name == "vovnet39a":
        assert model.config.residual and not zoo.create_model(name, device="meta").config.residual


@pytest.mark.parametrize(("name", "averaged"), [("vanilla_vmamba_tiny", False), ("vmamba_small_s2l15", True)])
def test_the_copy_that_the_authors_evaluate(name, averaged, hub, tmp_path, monkeypatch):
    """VMamba's files have the trained weights and their average, which the published accuracy is of where there is one:
    of all but the vanilla T."""
    small = {"dims": (8, 16), "depths": (1, 1), "img_size": 16}
    model: Any = zoo.create_model(name, **small)
    average = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_ema": average, "epoch": 9}, tmp_path / "file.pth")
    hub.plain["file.pth"] = (tmp_path / "file.pth").read_bytes()
    monkeypatch.setitem(INDEX[name], "in1k", dataclasses.replace(INDEX[name]["in1k"], url=f"{hub.url}/file.pth"))
    loaded: Any = zoo.create_model(name, pretrained=True, **small)
    expected = average if averaged else model.state_dict()
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in expected.items())
