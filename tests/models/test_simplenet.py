"""SimpleNet: counts and costs of the published networks, what the options change, names, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo


@pytest.mark.parametrize(
    ("name", "mega_macs"),
    [
        ("simplenetv1_small_m1_05", 340.92), ("simplenetv1_small_m2_05", 427.63), ("simplenetv1_small_m1_075", 758.85),
        ("simplenetv1_small_m2_075", 953.94), ("simplenetv1_5m_m1", 1341.76), ("simplenetv1_5m_m2", 1688.58),
        ("simplenetv1_9m_m1", 2774.25), ("simplenetv1_9m_m2", 3554.59), ("simplenetv1_cifar_5m", 652.15),
        ("simplenetv1_cifar_310k", 55.79),
    ],
)  # fmt: skip
def test_costs_of_the_published_networks(name, mega_macs):
    model: Any = zoo.create_model(name, device="meta").eval()
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.empty(1, 3, *model.config.image_shape, device="meta"))
    assert counter.get_total_flops() / 2e6 == pytest.approx(mega_macs, abs=0.005)
    assert model.feature_info[-1]["reduction"] == (16 if "cifar" in name else 32)


def test_written_out():
    """A chain of convolution, norm, ReLU with a pooling between stages, and the maximum of the last map."""
    model: Any = zoo.create_model("simplenet_nano").double().eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.5 if "var" in name else -1, 1.5)
    x = images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    for stage in model.stages:
        first = stage.downsample[0] if stage is model.stages[0] else None
        x = x if first else F.max_pool2d(x, 2)
        for layer in [*([first] if first else []), *stage.blocks]:
            mean, scale = layer.bn.running_mean, (layer.bn.running_var + layer.bn.eps).sqrt()
            x = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=layer.conv.weight.shape[2] // 2)
            mean, scale, weight, bias = (t[:, None, None] for t in (mean, scale, layer.bn.weight, layer.bn.bias))
            x = ((x - mean) / scale * weight + bias).clamp(min=0)
    torch.testing.assert_close(model(images), x.amax((2, 3)) @ model.head.weight.T + model.head.bias)


def test_the_poolings_average_where_asked():
    model: Any = zoo.create_model("simplenet_nano", global_pool="avg").eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model(x), model.head(model.forward_features(x).mean((2, 3))))


def test_dropout_of_channels():
    model: Any = zoo.create_model("simplenet_nano", conv_drop_rate=0.5)
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout2d)]
    assert len(layers) == len(model.config.widths) - 1 and {layer.p for layer in layers} == {0.5}


def published(numbers: list[int], widths: tuple[int, ...], pointwise: tuple[int, ...], in_chans: int = 3) -> dict:
    tensors, before = {}, in_chans
    for place, (number, width) in enumerate(zip(numbers, widths, strict=True)):
        side = 1 if place in pointwise else 3
        tensors |= {
            f"features.{number}.weight": torch.randn(width, before, side, side),
            f"features.{number}.bias": torch.randn(width),
            f"features.{number + 1}.num_batches_tracked": torch.tensor(7),
        }
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"features.{number + 1}.{leaf}"] = torch.rand(width)
        before = width
    return tensors | {"classifier.weight": torch.randn(10, before), "classifier.bias": torch.randn(10)}


@pytest.mark.parametrize(
    ("name", "numbers", "options"),
    [
        ("simplenetv1_small_m1_05", [0, 4, 8, 12, 16, 20, 26, 30, 34, 38, 44, 48, 52], {"num_classes": 10}),
        ("simplenetv1_cifar_5m", [0, 4, 8, 12, 17, 21, 25, 30, 34, 39, 43, 47, 52], {}),
        (
            "simplenetv1_cifar_5m", [0, 3, 6, 9, 14, 17, 20, 25, 28, 33, 38, 41, 46],
            {"depths": (3, 3, 2, 1, 2, 1), "dims": (128, 256, 256, 512, 256, 256)},
        ),
    ],
    ids=["imagenet", "cifar", "cifar-extra-pooling"],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_in_the_authors_layouts_load(name, numbers, options, prefix, tmp_path):
    config = zoo.create_model(name, device="meta", **options).config
    tensors = published(numbers, config.widths, config.pointwise)
    torch.save({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "weights.pth")
    model: Any = zoo.create_model(name, checkpoint_path=tmp_path / "weights.pth", **options)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for number, conv, norm in zip(numbers, convs, norms, strict=True):
        assert torch.equal(conv.weight, tensors[f"features.{number}.weight"])
        assert torch.equal(norm.running_var, tensors[f"features.{number + 1}.running_var"])
    assert torch.equal(model.head.bias, tensors["classifier.bias"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (16, 32)}, r"widths must hold 1 \+ sum\(depths\) = 7 channels"),
        ({"dims": (32, 48, 64)}, r"dims must be the widths that end the stages, \(32, 48, 48\), got \(32, 48, 64\)"),
        ({"pointwise": (7,)}, r"pointwise must hold indices into widths, got \(7,\)"),
        ({"drop_path_rate": 0.1}, "no residual branches to drop"),
        ({"global_pool": "mean"}, "global_pool must be 'avg', 'max', or ''"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("simplenet_nano", **options)
