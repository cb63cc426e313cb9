"""SHViT: its attention written out, what stays untouched, and its errors. Numbers against timm: test_timm_backbones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers import SingleHeadAttention


def attention_by_loops(layer: Any, x: Tensor) -> Tensor:
    """What the projection receives, one image and one position at a time."""
    part = layer.parts[0]
    outputs = []
    for image in x:
        tokens = image.flatten(1).T  # (N, dim)
        attending = tokens[:, :part]
        centred = (attending - attending.mean()) / (attending.var(unbiased=False) + 1e-5).sqrt()
        normed = centred * layer.norm.weight + layer.norm.bias
        bn = layer.qkv.bn
        projected = normed @ layer.qkv.conv.weight[:, :, 0, 0].T
        projected = (projected - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
        q, k, v = projected.split(layer.qkv_dims, dim=1)
        rows = []
        for query in q:
            scores = torch.stack([query @ key for key in k]) / math.sqrt(len(query))
            weights = scores.exp() / scores.exp().sum()
            rows.append(sum(weight * value for weight, value in zip(weights, v, strict=True)))
        outputs.append(torch.cat([torch.stack(rows), tokens[:, part:]], dim=1).relu().T.view_as(image))
    return torch.stack(outputs)


def test_attention_is_one_head_over_a_part_of_the_channels():
    layer = SingleHeadAttention(12, 5, qk_dim=3).double().eval()
    layer.qkv.bn.running_mean.uniform_(-1, 1)
    layer.qkv.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 12, 3, 4, dtype=torch.float64)
    received = []
    layer.proj[1].register_forward_pre_hook(lambda module, inputs: received.append(inputs[0]))
    with torch.no_grad():
        layer(x)
        torch.testing.assert_close(received[0], attention_by_loops(layer, x), atol=1e-12, rtol=0)


def test_the_first_stage_does_not_attend_and_a_new_block_is_the_identity():
    model: Any = zoo.create_model("shvit_s1").eval()
    attending = [any(isinstance(module, SingleHeadAttention) for module in stage.modules()) for stage in model.stages]
    assert attending == [False, True, True]
    for stage, dim in zip(model.stages, model.config.dims, strict=True):
        x = torch.randn(1, dim, 4, 4)
        assert all(torch.equal(block(x), x) for block in stage.blocks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partial_dims": (0, 96)}, "partial_dim must be between 0 and dim"),
        ({"partial_dims": (0,)}, "partial_dims must hold 2 integers"),
        ({"depths": (1, 2, 3)}, "depths must hold 2 integers"),
        ({"dims": (49, 96)}, "divisible by 2, got 49"),
        ({"stem_strides": (4,)}, "stem_strides must be some of 1 and 2"),
        ({"global_pool": "token"}, "global_pool must be 'avg'"),
        ({"global_pool": ""}, "which cannot be classified"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("shvit_nano", **options)
