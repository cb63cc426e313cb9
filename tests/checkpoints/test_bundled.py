"""The weights in the package are the ones of the index, load without a network, and score what the index says."""

from __future__ import annotations

import json

import pytest
import torch

import zoo
from zoo.checkpoints import bundled
from zoo.train.bundle import recipes, score

NAMES = sorted(bundled.index())


def test_the_index_is_of_the_files_that_are_there():
    files = {path.name for path in bundled.FOLDER.glob("*.safetensors")}
    assert files == {entry["file"] for entry in bundled.index().values()}
    assert {"vim_nano", "mamba2_nano"} <= set(NAMES)
    for name, entry in bundled.index().items():
        assert bundled.path(name).stat().st_size == entry["bytes"] < bundled.LIMIT
        assert entry["recipe"] == recipes()[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_metric(name):
    entry = bundled.index()[name]
    if entry["recipe"].startswith("cartpole_"):
        pytest.importorskip("gymnasium", reason="environments are Gymnasium's: pip install 'efficient-zoo[worlds]'")
    found = score(zoo.create_model(name, pretrained=True))
    assert found["metric"] == entry["metric"]
    if found["data_digest"] == entry["data_digest"]:
        assert found["value"] == pytest.approx(entry["value"], abs=0.003)  # one digit of 359 is 0.0028
    else:  # another Python's documentation
        assert found["metric"] == "bits_per_byte" and found["value"] < 3


def test_a_file_that_is_not_the_released_one(tmp_path, monkeypatch):
    bundled.index()  # as released
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    for content in (None, b"something else"):
        if content is not None:
            (tmp_path / "vim_nano.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"vim_nano\.safetensors is not the file .*nothing was loaded"):
            zoo.create_model("vim_nano", pretrained=True)


def test_models_without_bundled_weights():
    assert bundled.path("mamba_130m") is None
    with pytest.raises(ValueError, match=r"no weights of .mamba_130m. come with the package.*vim_nano"):
        bundled.read("mamba_130m")


def test_packing_in_8_bits_keeps_rows():
    torch.manual_seed(0)
    rows = torch.randn(2000, 500) * torch.logspace(-4, 2, 2000)[:, None]
    rows[7] = 0
    tensors = {"w": rows, "b": torch.randn(500), "n": torch.tensor(3)}
    packed = bundled.pack(tensors)
    assert packed["w"].dtype == torch.int8 and packed["b"].dtype == torch.float16
    again = bundled.unpack(packed)
    assert again.keys() == tensors.keys() and again["n"] == 3
    step = rows.abs().amax(-1, keepdim=True) / 127
    assert ((again["w"] - rows).abs() <= 0.50001 * step).all()


def test_packing_in_8_bits_keeps_output_channels_of_kernels():
    kernels = torch.randn(64, 1000, 3, 3) * torch.logspace(-4, 2, 64)[:, None, None, None]
    packed = bundled.pack({"k": kernels})
    assert packed["k"].dtype == torch.int8 and packed["k.row_scale"].shape == (64, 1, 1, 1)
    step = kernels.abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((bundled.unpack(packed)["k"] - kernels).abs() <= 0.50001 * step).all()


def test_json_of_the_index_is_sorted_and_complete():
    content = json.loads(bundled.INDEX.read_text())
    assert list(content) == NAMES
    wanted = {"file", "sha256", "bytes", "metric", "value", "data", "data_digest", "recipe", "seed"}
    assert all(set(entry) == wanted for entry in content.values())
