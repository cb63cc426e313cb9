"""MCUNet: counts of the published networks, the authors' files, patches and their memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.layers import ConvNorm
from zoo.layers.conv import GELUConvNorm
from zoo.layers.conv.osa import SeparableConvNorm
from zoo.vision.mcunet import redistribute
from zoo.vision.patches import PatchedModel, best_plan, patch_inference, plan
from zoo.vision.windows import steps_of


@pytest.mark.parametrize(
    ("name", "mega_macs"),
    [
        ("mcunet_in0", 6.36), ("mcunet_in1", 12.79), ("mcunet_in2", 67.29), ("mcunet_in3", 81.79),
        ("mcunet_in4", 125.87), ("mcunet_vww0", 5.96), ("mcunet_vww1", 11.58), ("mcunet_vww2", 55.77),
        ("mbv2_w035", 23.50), ("proxyless_w03", 38.28),
    ],
)  # fmt: skip
def test_costs_of_the_published_networks(name, mega_macs):
    model: Any = zoo.create_model(name, device="meta").eval()
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.empty(1, 3, *model.config.image_shape, device="meta"))
    assert counter.get_total_flops() / 2e6 == pytest.approx(mega_macs, abs=0.006)


def randomised(name: str, **options: Any) -> Any:
    model: Any = zoo.create_model(name, **options)
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.5 if "var" in key else -0.5, 1.0)
    return model.eval()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("stages", "grid"), [(0, 1), (1, 1), (1, 3), (2, 2), (2, 5), (3, 4), (5, 2)])
def test_patches_change_nothing(stages, grid, fused):
    model = randomised("mcunet_in1", img_size=50, num_classes=7).double()
    x = torch.randn(2, 3, 50, 50, dtype=torch.float64)
    expected = model(x)
    model = model.fuse() if fused else model
    for channels in (None, 5) if fused else (None,):
        found = PatchedModel(model, stages, grid, channels)(x)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("size", [(17, 23), (8, 9)])
@pytest.mark.parametrize("grid", [1, 2, 3, 7])
def test_patches_of_any_row_of_layers(size, grid):
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 5, 2, 1), nn.ReLU(), ConvNorm(4, 4, 3, relu=True), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 3, 1),
        ConvNorm(3, 3, 3, groups=3, bias=True), nn.Conv2d(3, 3, 2),
    ).double().eval()  # fmt: skip
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm2d):  # zeros at the border of a later layer are no zeros of an earlier one
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.bias, 0.5, 1)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(patch_inference(steps_of(layers), x, grid), layers(x), atol=1e-12, rtol=1e-10)


class Live(TorchDispatchMode):
    """The largest sum of the bytes of what operators have made and is not gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (out,) if isinstance(out, Tensor) else ():
            storage = tensor.untyped_storage()
            known = {t.untyped_storage().data_ptr() for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)}
            if storage.data_ptr() not in self.seen | known:
                self.seen.add(storage.data_ptr())
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self._gone, storage.data_ptr(), storage.nbytes())
        return out

    def _gone(self, pointer: int, size: int) -> None:
        self.seen.discard(pointer)
        self.now -= size


def measured(model: Any, *cut: int) -> int:
    x = torch.randn(1, 3, *model.config.image_shape)
    patched = PatchedModel(model, *cut)
    live = Live()
    with live, torch.no_grad():
        patched(x)
    return live.most


@pytest.mark.parametrize(
    ("name", "img_size", "cut", "times"),
    [
        ("mbv2_w035", 144, (3, 4), 4.3), ("mbv2_w035", 224, (3, 5), 7.7),  # as the paper's MobileNetV2
        # networks that were searched for a small peak without patches: there wide maps of later stages decide
        ("proxyless_w03", 176, (2, 5), 1.8), ("proxyless_w03", 176, (2, 3, 8), 4.5), ("mcunet_in2", 160, (2, 5), 1.4),
        ("mcunet_in2", 160, (2, 5, 8), 4.3), ("mcunet_in3", 176, (2, 7, 8), 4.2), ("mcunet_in4", 160, (2, 3, 8), 4.0),
        ("mcunet_vww2", 144, (2, 5), 1.2), ("mcunet_vww2", 144, (2, 4, 8), 4.3), ("mbv2_w035", 144, (2, 2, 8), 8.0),
        ("mbv2_w035", 144, (0, 1, 7), 1.5),
    ],
)  # fmt: skip
def test_memory_is_what_was_planned_and_falls(name, img_size, cut, times):
    model = zoo.create_model(name, img_size=img_size).fuse()
    plain, patched = plan(model), plan(model, *cut)
    assert measured(model, 0, 1) == plain.peak and measured(model, *cut) == patched.peak
    assert plain.peak / patched.peak >= times


def test_products_are_those_of_the_run():
    model = zoo.create_model("mcunet_in1", img_size=50).fuse()
    for cut in ((0, 1), (2, 3), (2, 3, 7)):
        counter = FlopCounterMode(display=False)
        with counter:
            PatchedModel(model, *cut)(torch.randn(1, 3, 50, 50))
        assert counter.get_total_flops() == 2 * (plan(model, *cut).macs + model.head.weight.numel())


def test_the_best_plan():
    model = zoo.create_model("mcunet_in1").fuse()
    plain = plan(model)
    assert best_plan(model, plain.peak) == plain
    smaller = best_plan(model, plain.peak // 2, groups=(None,))
    assert smaller.peak <= plain.peak // 2 and smaller.macs > plain.macs
    assert all(
        plan(model, s, g).macs >= smaller.macs
        for s in (1, 2, 3, 4)
        for g in (2, 3, 4)
        if plan(model, s, g).peak <= plain.peak // 2
    )
    assert best_plan(model, plain.peak // 2).macs < smaller.macs and best_plan(model, plain.peak // 4).channels == 8
    with pytest.raises(ValueError, match="no plan needs at most 10 bytes; the least is"):
        best_plan(model, 10)


def test_redistribution_overlaps_less():
    config: Any = zoo.create_model("mbv2_w035", device="meta").config
    moved = redistribute(config, 3)
    assert moved.dims == config.dims and moved.blocks != config.blocks
    reach = [sum(k - 1 for stage in c.blocks for _, k, _ in stage) for c in (config, moved)]
    assert reach[0] == reach[1]  # what is taken in front is given behind
    models: list[Any] = [zoo.create_model("mbv2_w035", blocks=c.blocks).fuse() for c in (config, moved)]
    overheads = [plan(model, 3, 4).macs / plan(model).macs for model in models]
    assert 1 < overheads[1] < overheads[0]
    with pytest.raises(ValueError, match="stages must be from 1 to 4, got 5"):
        redistribute(config, 5)


@pytest.mark.parametrize("name", ["mcunet_in0", "proxyless_w03"])
def test_files_in_the_authors_layout_load(name, tmp_path):
    """The authors leave numbers out where a block was searched away."""
    model = randomised(name)
    blocks = [m for stage in model.stages for m in (stage.downsample, *stage.blocks) if hasattr(m, "depthwise")]
    numbers = (
        list(range(len(blocks))) if name == "mcunet_in0" else [n for n in range(len(blocks) + 2) if n not in (3, 4)]
    )
    names = {
        f"{part}.": f"mobile_inverted_conv.{theirs}."
        for part, theirs in (
            ("expand", "inverted_bottleneck"),
            ("depthwise", "depth_conv"),
            ("project", "point_linear"),
        )
    }
    tensors = {}
    for number, block in zip(numbers, blocks, strict=True):
        for key, tensor in block.state_dict().items():
            for ours, theirs in names.items():
                key = theirs + key.removeprefix(ours) if key.startswith(ours) else key
            tensors[f"blocks.{number}.{key}"] = tensor
    ends = [("first_conv.", model.stages[0].downsample[0]), ("classifier.linear.", model.head)]
    if model.config.mix_dim:
        ends.append(("feature_mix_layer.", model.stages[-1].blocks[-1]))
    tensors |= {prefix + key: t for prefix, module in ends for key, t in module.state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "weights.pth")
    loaded = zoo.create_model(name, checkpoint_path=tmp_path / "weights.pth")
    for (key, tensor), expected in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (((1, 2, 16),), ((4, 3, 32),))}, r"\(expansion, odd kernel size, channels\), got \(1, 2, 16\)"),
        ({"dims": (16, 32, 32)}, r"dims and depths must be those of the blocks, \(\(16, 32, 64\), \(2, 1, 1\)\)"),
        ({"stem_strides": (2, 2)}, "stem_strides must hold 1 stride"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("mcunet_nano", **options)


def test_errors_of_patches():
    model: Any = zoo.create_model("mcunet_nano")
    with pytest.raises(ValueError, match="patches are for inference"):
        PatchedModel(model, 1, 2)
    with pytest.raises(ValueError, match="stages must be from 0 to 3 and grid at least 1, got 4, 2"):
        PatchedModel(model.eval(), 4, 2)
    with pytest.raises(ValueError, match="channels must be at least 1, or None for all at once, got 0"):
        PatchedModel(model, 1, 2, 0)
    for unknown in (SeparableConvNorm(4, 4), GELUConvNorm(4, 4)):
        with pytest.raises(ValueError, match=f"got {type(unknown).__name__}"):
            steps_of(unknown.eval())
    with pytest.raises(ValueError, match=r"patches are for convolutions.*got AdaptiveAvgPool2d"):
        steps_of(nn.AdaptiveAvgPool2d(1).eval())
    with pytest.raises(ValueError, match="without dilation"):
        steps_of(nn.Conv2d(1, 1, 3, dilation=2))
