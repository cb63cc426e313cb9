"""The zoo's names in timm."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_data_config

import zoo


@pytest.fixture(scope="module", autouse=True)
def registered() -> list[str]:
    zoo.register_with_timm()
    names = zoo.list_models(task="image-classification")
    return [name for name in names if timm.models.model_entrypoint(name).__module__ == zoo.timm_registry.__name__]


def test_every_classifier_is_there_and_timms_own_stay_timms(registered):
    assert set(zoo.list_models(task="image-classification")) <= set(timm.list_models())
    assert {"vim_tiny", "shvit_nano", "pcdarts_cifar"} <= set(registered)
    assert type(timm.create_model("ese_vovnet19b_dw")).__module__.startswith("timm.")
    assert zoo.register_with_timm() == []


def test_arguments_of_timm_reach_the_model():
    model: Any = timm.create_model("vim_nano", num_classes=3, in_chans=3, img_size=12, drop_path_rate=0.1)
    assert isinstance(model, zoo.vision.Vim) and model.config.drop_path_rate == 0.1
    assert model.eval()(torch.randn(2, 3, 12, 12)).shape == (2, 3)
    features: Any = timm.create_model("shvit_nano", features_only=True, out_indices=(0, 1))
    assert features.feature_info.channels() == [
        info["num_chs"] for info in zoo.create_model("shvit_nano").feature_info[:2]
    ]
    with pytest.raises(TypeError, match="in_chanz"):
        timm.create_model("vim_nano", in_chanz=3)
    with pytest.raises(RuntimeError, match="No pretrained weights exist for pcdarts_cifar"):
        timm.create_model("pcdarts_cifar", pretrained=True)


def test_data_configuration_and_files(tmp_path):
    model = zoo.create_model("vovnet_nano")
    zoo.save_model(model, tmp_path)
    loaded: Any = timm.create_model("vovnet_nano", checkpoint_path=tmp_path / "model.safetensors")
    for tensor, expected in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected)
    assert resolve_data_config({}, model=loaded)["input_size"] == (1, 8, 8)
    assert timm.get_pretrained_cfg("vovnet_nano").mean == (0.305,)
