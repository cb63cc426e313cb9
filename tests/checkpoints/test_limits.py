"""A configuration may ask for about what the weights beside it hold: else it is refused before anything is built."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.checkpoints import read_config, read_state_dict
from zoo.recognition import describe_model


def changed(folder: Path, **fields: Any) -> str:
    """The folder's name for ``create_model``, its configuration changed."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"config": content["config"] | fields}))
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("axial_nano", {"outer_depth": 10**12}),
        ("scatterbrain_nano", {"num_features": 10**12}),
        ("scatterbrain_nano", {"num_features": 10**6}),
        ("longconv_nano", {"depth": 10**12}),
        ("mor_nano", {"num_recursions": 10**12}),
        ("s4_nano", {"d_state": 10**12}),
        ("s4_nano", {"d_state": 30_000}),
        ("shvit_nano", {"depths": [10**12, 1]}),
        ("vit_nano", {"img_size": 30_000}),
        ("vit_nano", {"img_size": [8, 10**12]}),
        ("mamba2_nano", {"depth": 999}),
        ("mamba2_nano", {"vocab_size": 10**4000}),
        ("m3vit_nano", {"label_tasks": {"a": 10**12}}),
        ("vit_nano", {"mlp_ratio": 1e300}),
    ],
)
def test_sizes_far_beyond_the_weights(name, fields, tmp_path):
    zoo.save_model(zoo.create_model(name), tmp_path)
    with pytest.raises(ValueError, match=r"the checkpoint holds|no model can be built|does not fit") as error:
        zoo.create_model(changed(tmp_path, **fields))
    assert str(tmp_path) in str(error.value) and len(str(error.value)) < 3000


def test_every_integer_of_every_configuration(tmp_path):
    """10^12 of anything, wherever a configuration has an integer."""
    for name in zoo.list_models("*_nano"):
        config = dataclasses.asdict(zoo.registry.lookup(name).configure())
        for field, value in config.items():
            if isinstance(value, int) and not isinstance(value, bool):
                content = {"architecture": name, "config": {field: 10**12}}
                with pytest.raises(ValueError, match=f"{field} is 1000000000000"):
                    describe_model(content, {"a": torch.zeros(5)}, "folder")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mamba2_nano", {"norm_eps": math.nan}, "norm_eps must not be"),
        ("mamba2_nano", {"norm_eps": math.inf}, "norm_eps must not be"),
        ("mamba2_nano", {"dt_limit": [math.nan, 1.0]}, "dt_limit must"),
        ("deepseek_nano", {"mtp_depth": -1}, "mtp_depth must not be negative"),
        ("moe_nano", {"top_k": -(10**12)}, "top_k must be a positive integer"),
        ("vit_nano", {"mean": [math.nan]}, "mean must"),
        ("vit_nano", {"mlp_ratio": 10**400}, "mlp_ratio must be float"),
        ("mcunet_nano", {"blocks": eval("[" * 20 + "1" + "]" * 20)}, "blocks must be"),
    ],
)
def test_numbers_that_mean_nothing(name, fields, message, tmp_path):
    zoo.save_model(zoo.create_model(name), tmp_path)
    with pytest.raises(ValueError, match=message):
        zoo.create_model(changed(tmp_path, **fields))


@pytest.mark.parametrize("depth", [40, 900, 100_000])
def test_deep_nesting(depth, tmp_path):
    zoo.save_model(zoo.create_model("vit_nano"), tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "vit_nano", "config": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        zoo.create_model(f"local-dir:{tmp_path}")


def test_large_numbers_that_are_no_sizes(tmp_path):
    zoo.save_model(zoo.create_model("transformer_nano"), tmp_path)
    model: Any = zoo.create_model(changed(tmp_path, rope_base=10**11))
    assert model.config.rope_base == 1e11 and isinstance(model.config.rope_base, float)


def test_a_key_twice(tmp_path):
    zoo.save_model(zoo.create_model("vit_nano"), tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "vit_nano", "config": {"dim": 64, "dim": 32}}')
    with pytest.raises(ValueError, match="it names 'dim' twice"):
        zoo.create_model(f"local-dir:{tmp_path}")


def test_infinity_is_written_as_json_and_read_in_both_forms(tmp_path):
    model: Any = zoo.create_model("mamba2_nano")
    zoo.save_model(model, tmp_path)
    path = tmp_path / "config.json"

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    strict = json.loads(path.read_text(), parse_constant=refuse)
    assert strict["config"]["dt_limit"] == [0.0, {"__float__": "Infinity"}]
    assert zoo.create_model(f"local-dir:{tmp_path}").config == model.config
    path.write_text(path.read_text().replace('{\n        "__float__": "Infinity"\n      }', "Infinity"))
    assert "__float__" not in path.read_text() and read_config(tmp_path)["config"]["dt_limit"][1] == math.inf
    assert zoo.create_model(f"local-dir:{tmp_path}").config == model.config


def integers(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {key: (10 * tensor).to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", ["mamba2_nano", "efficientvit_nano"])
def test_other_kinds_of_numbers_are_no_weights(name, dtype, tmp_path):
    model = zoo.create_model(name)
    wrong = integers(model.state_dict(), dtype)
    zoo.checkpoints.write_folder(tmp_path / "folder", wrong, {"architecture": name, "config": {}}, "")
    torch.save(wrong, tmp_path / "plain.pth")
    lightning = {f"model.{key}": tensor for key, tensor in wrong.items()}
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": lightning}, tmp_path / "last.ckpt")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for load in (
        lambda: zoo.create_model(f"local-dir:{tmp_path / 'folder'}"),
        lambda: zoo.create_model(name, checkpoint_path=tmp_path / "plain.pth"),
        lambda: zoo.create_model(name, checkpoint_path=tmp_path / "last.ckpt"),
        lambda: zoo.load_weights(model, wrong),
        lambda: zoo.convert(tmp_path / "folder", tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=rf"of another kind \(\d+\): .*checkpoint {str(dtype)[6:]}, model float32"):
            load()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not (tmp_path / "out").exists()


def test_counters_stay_integers_and_may_be_stored_as_whole_numbers(tmp_path):
    tensors = zoo.create_model("shvit_nano").state_dict()
    counters = [key for key in tensors if key.endswith("num_batches_tracked")]
    for value, stored in ((7, torch.tensor(7.0)), (None, torch.tensor(7.5))):
        torch.save({**tensors, **dict.fromkeys(counters, stored)}, tmp_path / "shvit.pth")
        if value is None:
            with pytest.raises(ValueError, match="of another kind"):
                zoo.create_model("shvit_nano", checkpoint_path=tmp_path / "shvit.pth")
        else:
            loaded = zoo.create_model("shvit_nano", checkpoint_path=tmp_path / "shvit.pth").state_dict()
            assert all(loaded[key] == value and loaded[key].dtype == torch.int64 for key in counters)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_one_number_is_not_a_table(tmp_path):
    """A pickle can name a tensor of any shape over one number."""
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "huge.pth")
    with pytest.raises(ValueError, match=r"a has shape \(1000000000000,\), but the file holds fewer numbers"):
        read_state_dict(tmp_path / "huge.pth")
    for odd in (torch.eye(3).to_sparse(), torch.zeros(3, device="meta")):
        torch.save({"a": odd}, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=r"a is no plain tensor|not a checkpoint"):
            read_state_dict(tmp_path / "odd.pth")
