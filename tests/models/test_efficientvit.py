"""EfficientViT: the cascade written out, windows, biases, errors. Numbers against timm: test_timm_backbones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.layers import CascadedGroupAttention
from zoo.layers.attention.cascaded_group import from_windows, to_windows


def layer_of(dim: int = 12, num_heads: int = 3, window: int = 3) -> Any:
    """A layer in float64 and eval mode whose parameters and statistics are all random."""
    layer = CascadedGroupAttention(dim, num_heads, window, kernels=(5, 3, 3), qk_dim=4).double().eval()
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5 if "var" in name else -1, 1.5)
    return layer


def attention_by_loops(layer: Any, x: Tensor) -> Tensor:
    """What the projection receives for one window, (C, W, W), by loops over heads and pairs of positions."""
    side = x.shape[1]
    positions = [(row, column) for row in range(side) for column in range(side)]
    size = x.shape[0] // layer.num_heads
    found, outputs = torch.zeros(size, side, side, dtype=x.dtype), []
    for head in range(layer.num_heads):
        own = x[head * size : (head + 1) * size] + found
        q, k, v = layer.qkvs[head](own[None])[0].split([4, 4, size])
        q = layer.dws[head](q[None])[0]
        found = torch.zeros_like(found)
        for row, column in positions:
            scores = [
                q[:, row, column] @ k[:, r, c] / math.sqrt(4)
                + layer.attention_biases[head, side * abs(row - r) + abs(column - c)]
                for r, c in positions
            ]
            weights = torch.stack(scores).softmax(0)
            found[:, row, column] = sum(w * v[:, r, c] for w, (r, c) in zip(weights, positions, strict=True))
        outputs.append(found)
    return torch.cat(outputs).relu()


def test_each_head_sees_what_the_one_before_found():
    layer, received = layer_of(), []
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    layer.proj[1].register_forward_pre_hook(lambda module, inputs: received.append(inputs[0]))
    with torch.no_grad():
        layer(x)
        expected = torch.stack([attention_by_loops(layer, image) for image in x])
    torch.testing.assert_close(received[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (6, 3), (4, 5), (2, 2), (7, 1)])
def test_other_sizes_are_attended_in_windows(height, width):
    layer = layer_of()
    x = torch.randn(2, 12, height, width, dtype=torch.float64)
    padded = torch.zeros(2, 12, -(-height // 3) * 3, -(-width // 3) * 3, dtype=torch.float64)
    padded[:, :, :height, :width] = x
    expected = torch.empty_like(padded)
    with torch.no_grad():
        for row in range(0, padded.shape[2], 3):
            for column in range(0, padded.shape[3], 3):
                window = padded[:, :, row : row + 3, column : column + 3]
                expected[:, :, row : row + 3, column : column + 3] = layer.attend(window)
        torch.testing.assert_close(layer(x), expected[:, :, :height, :width], atol=1e-12, rtol=0)
    assert torch.equal(from_windows(to_windows(x, 3), height, width), x)


def test_a_new_block_is_the_identity_and_only_biases_escape_weight_decay():
    model: Any = zoo.create_model("efficientvit_m0").eval()
    for stage, dim in zip(model.stages, model.config.dims, strict=True):
        x = torch.randn(1, dim, 7, 7)
        assert all(torch.equal(block(x), x) for block in stage.blocks)
    assert model.no_weight_decay() == {
        f"stages.{stage}.blocks.{block}.mixer.branch.attention_biases"
        for stage, depth in enumerate((1, 2, 3))
        for block in range(depth)
    }
    tables = [tuple(stage.blocks[0].mixer.branch.attention_biases.shape) for stage in model.stages]
    assert tables == [(4, 49), (4, 49), (4, 16)]


def test_names_of_the_authors():
    """Cream keeps the downsampling among the blocks, stores indices and writes some convolutions as matrices."""
    names = {
        "patch_embed.0.c.weight": "stages.0.downsample.0.conv.weight",
        "patch_embed.6.c.weight": "stages.0.downsample.3.conv.weight",
        "blocks1.0.mixer.m.attn.attention_biases": "stages.0.blocks.0.mixer.branch.attention_biases",
        "blocks1.0.mixer.m.attn.attention_bias_idxs": None,
        "blocks2.0.0.m.c.weight": "stages.1.downsample.0.branch.conv.weight",
        "blocks2.0.1.m.pw1.bn.bias": "stages.1.downsample.1.branch.pw1.bn.bias",
        "blocks2.1.se.fc1.bias": "stages.1.downsample.2.se.fc1.bias",
        "blocks3.2.0.m.c.weight": "stages.2.downsample.3.branch.conv.weight",
        "blocks3.2.1.m.pw2.bn.weight": "stages.2.downsample.4.branch.pw2.bn.weight",
        "blocks3.12.mixer.m.attn.proj.1.c.weight": "stages.2.blocks.9.mixer.branch.proj.1.conv.weight",
        "head.l.bias": "head.linear.bias",
    }
    shaped = {key: torch.zeros(6, 4) for key in names}
    converted = zoo.checkpoints.convert.to_zoo(shaped)
    assert set(converted) == {name for name in names.values() if name}
    for key, tensor in converted.items():
        assert tensor.shape == ((6, 4, 1, 1) if key.endswith("conv.weight") else (6, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": (2, 3)}, "num_heads must divide dim: got dim 64, num_heads 3"),
        ({"num_heads": (2,)}, "num_heads must hold 2 integers"),
        ({"kernels": (3,)}, r"kernels must hold one size a head: got \(3,\) for 2 heads"),
        ({"kernels": (3, 4)}, "kernel_size must be odd, got 4"),
        ({"window": 0}, "window must be a positive integer"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("efficientvit_nano", **options)
