"""VoVNet: the aggregation written out, what the options change, names, errors. Numbers against timm:
test_timm_backbones."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.layers import OneShotAggregation


def unit(x: Tensor, layer: Any, convolve: Any) -> Tensor:
    """relu(bn(convolve(x))), the norm in eval mode written out."""
    mean, scale = layer.bn.running_mean, (layer.bn.running_var + layer.bn.eps).sqrt()
    shaped = [t[:, None, None] for t in (mean, scale, layer.bn.weight, layer.bn.bias)]
    return ((convolve(x) - shaped[0]) / shaped[1] * shaped[2] + shaped[3]).clamp(min=0)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_aggregation_written_out(separable, residual):
    dim, out = 6, 6 if residual else 5
    block: Any = OneShotAggregation(dim, 4, out, 3, separable=separable, squeeze=True, residual=residual)
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5 if "var" in name else -1, 1.5)
    block = block.double().eval()
    x = torch.randn(2, dim, 5, 4, dtype=torch.float64)

    parts, y = [x], x
    if separable:
        y = unit(x, block.reduce, lambda t: torch.einsum("bchw,oc->bohw", t, block.reduce.conv.weight[:, :, 0, 0]))
    for layer in block.layers:
        before = layer.depthwise if separable else nn.Identity()
        y = unit(y, layer, lambda t, layer=layer, before=before: layer.conv(before(t)))
        parts.append(y)
    y = unit(torch.cat(parts, dim=1), block.concat, block.concat.conv)
    gate = y.mean((2, 3)) @ block.se.fc.weight[:, :, 0, 0].T + block.se.fc.bias
    y = y * ((gate + 3).clamp(0, 6) / 6)[:, :, None, None]
    torch.testing.assert_close(block(x), x + y if residual else y, atol=1e-12, rtol=1e-12)


def test_squeezes_and_residuals_are_where_the_names_say():
    def layout(model: Any) -> list[list[tuple[bool, bool]]]:
        return [
            [(not isinstance(block.se, nn.Identity), block.residual) for block in stage.blocks]
            for stage in model.stages[1:]
        ]

    one, two = [(True, False)], [(False, False), (True, True)]
    assert layout(zoo.create_model("ese_vovnet39b", device="meta")) == [one, one, two, two]
    plain, pair = [(False, False)], [(False, False)] * 2
    assert layout(zoo.create_model("vovnet39a", device="meta")) == [plain, plain, pair, pair]
    authors = zoo.create_model("vovnet39a", device="meta", residual=True)
    assert layout(authors)[2] == [(False, False), (False, True)]
    # of the backbones in vovnet-detectron2, by its configuration
    for name, count in (("ese_vovnet39b", 25_184_128), ("ese_vovnet57b", 41_454_912), ("ese_vovnet99b", 69_523_520)):
        model = zoo.create_model(name, device="meta", squeeze="every", num_classes=0)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.bottom_up."])
def test_names_of_the_authors(prefix):
    """A detector's file holds more than the backbone, and no counters of its frozen norms."""
    names = {
        "stem.stem_1/conv.weight": "stages.0.downsample.0.conv.weight",
        "stem.stem_2/dw_conv3x3.weight": "stages.0.downsample.1.depthwise.weight",
        "stem.stem_3/pw_norm.bias": "stages.1.downsample.bn.bias",
        "stage2.OSA2_1.conv_reduction.OSA2_1_reduction_0/conv.weight": "stages.1.blocks.0.reduce.conv.weight",
        "stage2.OSA2_1.layers.3.OSA2_1_3/pw_conv1x1.weight": "stages.1.blocks.0.layers.3.conv.weight",
        "stage4.OSA4_9.layers.0.OSA4_9_0/norm.running_mean": "stages.3.blocks.8.layers.0.bn.running_mean",
        "stage5.OSA5_2.concat.OSA5_2_concat/conv.weight": "stages.4.blocks.1.concat.conv.weight",
        "stage5.OSA5_2.ese.fc.bias": "stages.4.blocks.1.se.fc.bias",
    }
    if prefix != "backbone.bottom_up.":
        names["classifier.weight"] = "head.weight"
    tensors = {prefix + key: torch.zeros(1) for key in names}
    if prefix == "backbone.bottom_up.":
        tensors["backbone.fpn_lateral2.weight"] = torch.zeros(1)
    converted = zoo.checkpoints.convert.to_zoo(tensors)
    counter = "stages.3.blocks.8.layers.0.bn.num_batches_tracked"
    assert set(converted) == {*names.values(), counter} and converted[counter] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": False, "drop_path_rate": 0.1}, "no stage has a residual block"),
        ({"depths": (0, 1, 1), "drop_path_rate": 0.1}, "no stage has a residual block"),
        ({"depths": (1, 1, 2)}, "depths must start with 0 for the stem"),
        ({"mid_dims": (0, 24, 0)}, "mid_dims be positive after it"),
        ({"squeeze": "always"}, "squeeze must be 'never', 'last' or 'every', got 'always'"),
        ({"stem_strides": (2, 2)}, "stem_strides must hold 3 strides"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("vovnet_nano", **options)


def test_the_smallest_image():
    model: Any = zoo.create_model("ese_vovnet19b_slim_dw", num_classes=4).eval()
    assert model(torch.randn(1, 3, 29, 29)).shape == (1, 4)
    with pytest.raises(ValueError, match=r"sides of at least 29 pixels.*got \(28, 64\)"):
        model(torch.randn(1, 3, 28, 64))
    with pytest.raises(ValueError, match="keeps its width, got dim 3, out_dim 4"):
        OneShotAggregation(3, 3, 4, residual=True)


def of_the_authors(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Logits of the authors' network, written over the names of its file: stages from 2, layers from 0."""

    def layer(x: Tensor, place: str, stride: int = 1) -> Tensor:
        conv, (mean, var, weight, bias) = (
            tensors[f"{place}/conv.weight"],
            (tensors[f"{place}/norm.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")),
        )
        x = nn.functional.conv2d(x, conv, stride=stride, padding=conv.shape[2] // 2)
        return nn.functional.batch_norm(x, mean, var, weight, bias).clamp(min=0)

    for number, stride in ((1, 2), (2, 1), (3, 2)):
        x = layer(x, f"stem.stem_{number}", stride)
    for stage in range(2, 6):
        x = x if stage == 2 else nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
        block = 1
        while any(key.startswith(place := f"stage{stage}.OSA{stage}_{block}.") for key in tensors):
            name, maps, before = place.split(".")[1], [x], x
            for index in range(5):
                maps.append(layer(maps[-1], f"{place}layers.{index}.{name}_{index}"))
            x = layer(torch.cat(maps, dim=1), f"{place}concat.{name}_concat")
            if f"{place}ese.fc.weight" in tensors:
                gate = x.mean((2, 3)) @ tensors[f"{place}ese.fc.weight"][:, :, 0, 0].T + tensors[f"{place}ese.fc.bias"]
                x = x * ((gate + 3).clamp(0, 6) / 6)[:, :, None, None]
            x, block = x + before if block > 1 else x, block + 1
    return x.mean((2, 3)) @ tensors["classifier.weight"].T + tensors["classifier.bias"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of small networks in the authors' layout, plain and with squeezes: (path, tensors)."""
    found = {}
    for squeeze in ("never", "every"):
        model: Any = zoo.create_model("vovnet39a", dtype=torch.float64, residual=True, squeeze=squeeze, **SMALL)
        tensors = {}
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                nn.init.uniform_(tensor, 0.5, 1.0)
            for index, ours in enumerate(("stages.0.downsample.0.", "stages.0.downsample.1.", "stages.1.downsample.")):
                key = key.replace(ours, f"stem.stem_{index + 1}/")
            if parts := re.match(r"stages\.(\d)\.blocks\.(\d)\.(\w+)\.(.+)", key):
                name = f"OSA{int(parts[1]) + 1}_{int(parts[2]) + 1}"
                kind, rest = parts[3], parts[4]
                end = {"se": f"ese.{rest}", "concat": f"concat.{name}_concat/{rest}"}.get(kind)
                number, _, leaf = rest.partition(".")
                key = f"stage{int(parts[1]) + 1}.{name}.{end or f'layers.{number}.{name}_{number}/{leaf}'}"
            tensors[key.replace("/bn.", "/norm.").replace("head.", "classifier.")] = tensor
        path = tmp_path_factory.mktemp(squeeze) / "vovnet.pth"
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in tensors.items()}}, path)
        found[squeeze] = path, tensors
    return found


SMALL: dict[str, Any] = {
    "stem_dim": 8, "dims": (6, 8, 8, 12, 12), "mid_dims": (0, 4, 4, 6, 6), "num_classes": 5, "img_size": 64
}  # fmt: skip


@pytest.mark.parametrize("squeeze", ["never", "every"])
def test_a_file_of_the_authors_brings_its_residuals_and_squeezes(squeeze, published, tmp_path):
    path, tensors = published[squeeze]
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model: Any = zoo.create_model("vovnet39a", checkpoint_path=path, dtype=torch.float64, **SMALL).eval()
    assert (model.config.residual, model.config.squeeze) == (True, squeeze)
    expected = of_the_authors(images, tensors)
    torch.testing.assert_close(model(images), expected, atol=1e-9, rtol=1e-9)
    saved: Any = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}", dtype=torch.float64).eval()
    torch.testing.assert_close(saved(images), expected, atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match=r"was made with residual=True.* into a model with residual=False"):
        zoo.create_model("vovnet39a", checkpoint_path=path, residual=False, **SMALL)
    bare = {f"backbone.bottom_up.{key}": tensor for key, tensor in tensors.items() if "classifier" not in key}
    torch.save(bare, tmp_path / "detector.pth")
    options = SMALL | {"num_classes": 3}
    for given in ({key: value for key, value in SMALL.items() if key != "num_classes"}, options):
        detector: Any = zoo.create_model(
            "vovnet39a", checkpoint_path=tmp_path / "detector.pth", dtype=torch.float64, **given
        )
        assert detector.num_classes == given.get("num_classes", 0)
        torch.testing.assert_close(detector.eval().forward_features(images), model.forward_features(images))
    with pytest.raises(ValueError, match="the checkpoint was made with residual=True"):
        zoo.load_weights(zoo.create_model("vovnet39a", **SMALL), tensors)


def test_a_converted_file_of_the_authors_keeps_its_options(tmp_path):
    model = zoo.create_model("vovnet27_slim", device="meta")
    names = {"head.weight": "classifier.weight", "stages.0.downsample.0.conv.weight": "stem.stem_1/conv.weight"}
    tensors = {names.get(key, key): torch.zeros(()).expand(t.shape) for key, t in model.state_dict().items()}
    torch.save(tensors, tmp_path / "vovnet.pth")
    zoo.convert(tmp_path / "vovnet.pth", tmp_path / "folder", name="vovnet27_slim")
    loaded: Any = zoo.create_model(f"local-dir:{tmp_path / 'folder'}", device="meta")
    assert loaded.config.residual
