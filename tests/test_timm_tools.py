"""What timm's functions and scripts do to our models: tags, overlays, saving, pruning, folding, tracing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_model_data_config

import zoo
from zoo.checkpoints import bundled
from zoo.vision import HierarchicalModel

SCANNING = ["mambavision_nano", "vmamba_nano"]
CONVOLUTIONAL = [
    name
    for name in zoo.list_models("*_nano", task="image-classification")
    if isinstance(zoo.create_model(name, device="meta"), HierarchicalModel) and name not in SCANNING
]


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    zoo.register_with_timm()


def equal(model: Any, tensors: dict[str, torch.Tensor]) -> bool:
    found = model.state_dict()
    return set(found) == set(tensors) and all(torch.equal(found[key], tensors[key].to(found[key])) for key in found)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, torch.Tensor]]:
    tensors = zoo.create_model("shvit_nano").state_dict()
    path = tmp_path_factory.mktemp("mine") / "mine.pth"
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in tensors.items()}}, path)
    return str(path), tensors


@pytest.mark.parametrize("source", ["overlay", "cfg", "url", "state_dict", "tag", "folder"])
def test_weights_come_from_where_timm_is_told(source, mine, tmp_path):
    path, tensors = mine
    options: dict[str, Any] = {
        "overlay": {"pretrained_cfg_overlay": {"file": path}},
        "cfg": {"pretrained_cfg": {"file": path, "input_size": (1, 8, 8), "num_classes": 10}},
        "url": {"pretrained_cfg_overlay": {"url": f"file://{path}"}, "cache_dir": str(tmp_path)},
        "state_dict": {"pretrained_cfg_overlay": {"state_dict": tensors}},
        "tag": {"pretrained_cfg": "bundled"},
        "folder": {},
    }[source]
    name = "shvit_nano"
    if source == "folder":
        timm.models.save_for_hf(zoo_made(tensors), str(tmp_path))  # type: ignore[attr-defined]
        name = f"local-dir:{tmp_path}"
    model = timm.create_model(name, pretrained=True, **options)
    assert equal(model, bundled.read("shvit_nano") if source == "tag" else tensors)


def zoo_made(tensors: dict[str, torch.Tensor]) -> Any:
    model = timm.create_model("shvit_nano")
    model.load_state_dict(tensors)
    return model


def test_a_file_that_does_not_fit_or_holds_code_is_refused(mine, tmp_path):
    torch.save(zoo.create_model("vovnet_nano").state_dict(), tmp_path / "other.pth")
    torch.save(zoo.create_model("vovnet_nano"), tmp_path / "code.pth")
    for file, error, message in (
        ("other.pth", ValueError, "the file does not fit the model; nothing was loaded\n  missing"),
        ("code.pth", RuntimeError, "weights_only=True blocked"),
    ):
        with pytest.raises(error, match=message):
            overlay = {"file": str(tmp_path / file)}
            timm.create_model("shvit_nano", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)


def test_ends_are_adapted_as_timm_adapts_them(mine):
    path, tensors = mine
    model: Any = timm.create_model(
        "shvit_nano", pretrained=True, in_chans=3, num_classes=4, pretrained_cfg_overlay={"file": path}
    )
    stem = model.get_submodule(model.first_conv).weight
    torch.testing.assert_close(stem, tensors["stages.0.downsample.0.conv.weight"].repeat(1, 3, 1, 1) / 3)
    assert model.get_classifier().weight.shape == (4, 96)
    resized: Any = timm.create_model("vim_nano", pretrained=True, img_size=12)
    assert torch.equal(resized.pos_embed[:, 18], bundled.read("vim_nano")["pos_embed"].float()[:, 8])


def test_preparation_of_overlays_is_the_models(tmp_path):
    overlay = {"mean": (0.1,), "std": (0.2,), "crop_pct": 0.7, "interpolation": "bilinear"}
    model: Any = timm.create_model("vit_nano", pretrained_cfg_overlay=overlay)
    config = resolve_model_data_config(model)
    assert {key: config[key] for key in overlay} == overlay
    again: Any = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}")
    assert {key: again.pretrained_cfg[key] for key in overlay} == overlay


def test_tags():
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(no_such_tag\) for vim_nano"):
        timm.create_model("vim_nano.no_such_tag")
    finer: Any = timm.create_model("vim_tiny.in1k_stride8", device="meta")
    assert finer.config.stride == 8 and finer.pos_embed.shape[1] == 730
    assert finer.pretrained_cfg["hf_hub_filename"] == "vim_t_midclstok_ft_78p3acc.pth"
    assert timm.get_pretrained_cfg("vim_tiny").hf_hub_filename == "vim_t_midclstok_76p1acc.pth"
    found = timm.list_models("vim*", pretrained=True)
    assert {"vim_nano.bundled", "vim_tiny.in1k", "vim_tiny.in1k_stride8", "vim_base.in1k"} <= set(found)


@pytest.mark.parametrize("name", ["vim_nano", "mcunet_in0", "shvit_nano", "lightcnn_nano", "vovnet27_slim"])
def test_what_is_registered_is_what_the_model_says(name):
    cfg, model = timm.get_pretrained_cfg(name).to_dict(), timm.create_model(name, device="meta")
    assert {key: model.pretrained_cfg[key] for key in cfg} == cfg
    assert model.default_cfg == model.pretrained_cfg and model.in_chans == cfg["input_size"][0]
    assert model.get_submodule(cfg["first_conv"]).weight.dim() == 4
    assert model.get_submodule(cfg["classifier"]).out_features == cfg["num_classes"]


@pytest.mark.parametrize("name", zoo.list_models("*_nano", task="image-classification"))
def test_saved_for_the_hub_and_back(name, tmp_path):
    model: Any = timm.create_model(name, num_classes=3).eval()
    timm.models.save_for_hf(model, str(tmp_path))  # type: ignore[attr-defined]
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, *model.pretrained_cfg["input_size"])
    assert torch.equal(again(images), model(images))
    ours: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert torch.equal(ours(images), model(images)) and ours.config == again.config
    differing = {key for key, value in dataclasses.asdict(model.config).items() if getattr(again.config, key) != value}
    assert not differing


@pytest.mark.parametrize("name", ["mcunet_in0", "vim_nano"])
def test_features_keep_the_preparation(name):
    for features in (
        zoo.create_model(name, features_only=True),
        timm.create_model(name, features_only=True),
        timm.create_model(name, features_only=True, feature_cls="getter"),
    ):
        net: Any = features
        config = resolve_model_data_config(net)
        whole = resolve_model_data_config(zoo.create_model(name, device="meta"))
        assert config == whole and net.default_cfg["input_size"] == config["input_size"]
        assert "classifier" not in net.pretrained_cfg and net.in_chans == config["input_size"][0]
        maps = net.eval()(torch.randn(1, *config["input_size"]))
        assert [m.shape[1] for m in maps] == net.feature_info.channels()
    assert config["input_size"] == {"mcunet_in0": (3, 48, 48), "vim_nano": (1, 8, 8)}[name]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_folded_and_traced_by_others(name):
    model: Any = zoo.create_model(name, pretrained=True).eval()
    images = torch.randn(2, *model.pretrained_cfg["input_size"])
    expected = model(images)
    folded = timm.utils.reparameterize_model(model)
    torch.testing.assert_close(folded(images), expected, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.equal(torch.fx.symbolic_trace(model)(images), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model.fuse())(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
def test_torchscript_is_refused():
    for name in ("vit_nano", "shvit_nano"):
        with pytest.raises(NotImplementedError, match=r"has no TorchScript form: use torch\.export"):
            torch.jit.script(zoo.create_model(name))


@pytest.mark.parametrize("name", ["vim_nano", "s4_pixel_nano", "m3vit_nano", "efficientvit_nano", *SCANNING])
def test_timms_tracer_keeps_what_has_no_graph_whole(name):
    model: Any = timm.create_model(name).eval()
    images = torch.randn(2, *model.pretrained_cfg["input_size"])
    features = timm.models.GraphExtractNet(model, ["head"])
    assert torch.equal(features(images), model(images))
