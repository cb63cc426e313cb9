"""ConvFirst: its blocks written out, what they cost, tiles of them against the plain run, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.layers.conv import ConvFirst, MBConv
from zoo.vision import block_traffic, fuse_blocks
from zoo.vision.block_fusion import TiledBlock


def randomised(module: Any) -> Any:
    """With norms that are no identities, in eval mode and float64."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.5 if "var" in name else -1, 1.5)
    return module.double().eval()


def unit(x: Tensor, layer: Any, groups: int = 1, stride: int = 1) -> Tensor:
    """bn(conv(x)), one group of channels after the other."""
    weight, width = layer.conv.weight, x.shape[1] // groups
    rows = len(weight) // groups
    parts = [
        F.conv2d(
            x[:, g * width : (g + 1) * width], weight[g * rows : (g + 1) * rows], None, stride, weight.shape[2] // 2
        )
        for g in range(groups)
    ]
    bn = layer.bn
    shaped = [t[:, None, None] for t in (bn.running_mean, (bn.running_var + bn.eps).sqrt(), bn.weight, bn.bias)]
    return (torch.cat(parts, 1) - shaped[0]) / shaped[1] * shaped[2] + shaped[3]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


@pytest.mark.parametrize(("stride", "out"), [(1, 16), (1, 24), (2, 16)])
def test_blocks_written_out(stride, out):
    x = torch.randn(2, 16, 7, 6, dtype=torch.float64)
    first: Any = randomised(ConvFirst(16, out, 3, 5, stride))
    a, b, c = first.layers
    y = unit(silu(unit(unit(x, a, 2, stride), b)), c)
    torch.testing.assert_close(first(x), x + y if (stride, out) == (1, 16) else y)
    wide: Any = randomised(MBConv(16, out, 3, 3, stride, group_width=4))
    a, b, c = wide.layers
    y = unit(silu(unit(silu(unit(x, a)), b, 12, stride)), c)
    torch.testing.assert_close(wide(x), x + y if (stride, out) == (1, 16) else y)


@pytest.mark.parametrize(("kind", "macs"), [(ConvFirst, 53_760), (MBConv, 76_800)])
def test_products_a_pixel(kind, macs):
    """Of 64 channels, six times as wide: C g k^2 or r C g k^2, and 2 r C^2."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        kind(64, 64, 6)(torch.empty(1, 64, 4, 4))
    assert counter.get_total_flops() == 2 * 16 * macs


@pytest.mark.parametrize("tile", [1, 4, 5])
@pytest.mark.parametrize("kind", [ConvFirst, MBConv])
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 5)])
def test_tiles_are_the_plain_run(kind, stride, kernel, tile):
    """Zeros at the border of the wide map are no zeros of the narrow one."""
    block = randomised(kind(8, 8, 2, kernel, stride))
    x = torch.randn(2, 8, 9, 6, dtype=torch.float64)
    torch.testing.assert_close(TiledBlock(block, tile)(x), block(x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["convfirst_nano", "mcunet_nano"])
def test_a_model_of_tiles(name):
    model, x = randomised(zoo.create_model(name)), torch.randn(2, 1, 13, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(x)
        tiled = fuse_blocks(model, 3)
        assert any(isinstance(m, TiledBlock) for m in tiled.modules())
        torch.testing.assert_close(tiled(x), wanted, atol=1e-10, rtol=1e-10)


def test_what_a_block_moves_by_hand():
    """Of 16 channels, four times as wide, 16 x 16 pixels: C + C, C + 4 C, 4 C + C numbers a pixel, against C + C and
    the halo; a tile of 8 x 8 in a corner reads 9 x 9."""
    model = zoo.create_model(
        "convfirst_tiny", img_size=16, stem_strides=(1,), dims=(16, 16), depths=(1, 1), expand=(4, 4),
        kinds=("conv_first", "mbconv"),
    ).fuse()  # fmt: skip
    first, down, second = block_traffic(model, 8)
    assert [b.name for b in (first, down, second)] == ["stages.0.blocks.0", "stages.1.downsample", "stages.1.blocks.0"]
    pixel, wide = 4 * 16, 4 * 4 * 16  # bytes
    assert first.bytes == 256 * pixel * (4 + 2 * 4) and first.tiled_bytes == (4 * 81 + 256) * pixel
    assert block_traffic(model, 16)[0].bytes == (4 + 2 * 4) / 2 * block_traffic(model, 16)[0].tiled_bytes
    assert first.macs == first.tiled_macs == 256 * 16 * (72 + 2 * 4 * 16)
    assert down.tiled_macs == down.macs  # one tile
    assert first.workspace == 256 * (pixel + wide) and first.tiled_workspace == 64 * (pixel + wide) + 256 * pixel
    assert second.macs == 64 * 4 * 16 * (72 + 2 * 16)
    small = block_traffic(model, 4)[2]
    assert small.tiled_macs == small.macs + (4 * 25 - 64) * 16 * 4 * 16  # the widening of the halo
    assert small.bytes == 64 * (2 * (pixel + wide) + 2 * wide)


def test_products_of_tiles_are_those_of_the_run():
    model = zoo.create_model("convfirst_nano", img_size=16).fuse()
    x, wanted = torch.randn(1, 1, 16, 16), sum(b.tiled_macs for b in block_traffic(model, 5))
    stem = 256 * 9 * 32
    with FlopCounterMode(display=False) as counter:
        fuse_blocks(model, 5)(x)
    assert counter.get_total_flops() == 2 * (wanted + stem + 64 * 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("conv_first", "conv_last")}, "kinds must name one of conv_first, mbconv a stage"),
        ({"kinds": ("mbconv",)}, "kinds must name one of"),
        ({"dims": (32, 60)}, r"dims must be divisible by group_width 8.*got \(32, 60\)"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"expand": (4,)}, "expand must hold 2 integers"),
        ({"group_width": 0}, "group_width must be"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("convfirst_nano", **options)


def test_errors_of_tiles():
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        fuse_blocks(zoo.create_model("convfirst_nano"), 0)
    with pytest.raises(ValueError, match="SHViT has no residual blocks of convolutions alone"):
        fuse_blocks(zoo.create_model("shvit_nano"))
