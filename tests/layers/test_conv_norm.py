"""Convolutions with batch norm: folding them, and recomputing them once without counting them twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from zoo.layers import ConvNorm, NormLinear, Residual, depthwise, fuse, recompute
from zoo.layers.conv import InferenceConv2d


def settled(module: Any) -> Any:
    """In eval mode, with statistics and weights of its own for every norm."""
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                nn.init.uniform_(tensor, 0.5, 2.0)
    return module.double().eval()


def fused(module: Any) -> Any:
    parent = nn.Sequential(copy.deepcopy(module))
    fuse(parent)
    return parent[0]


@pytest.mark.parametrize(
    ("module", "kind", "shape"),
    [
        (ConvNorm(4, 6, 3, stride=2, groups=2), InferenceConv2d, (2, 4, 5, 7)),
        (ConvNorm(4, 6, relu=True), InferenceConv2d, (2, 4, 5, 7)),
        (depthwise(4, 5), InferenceConv2d, (2, 4, 5, 7)),
        (Residual(depthwise(4)), InferenceConv2d, (2, 4, 5, 7)),
        (Residual(ConvNorm(4, 4, groups=4, relu=True)), Residual, (2, 4, 5, 7)),
        (Residual(ConvNorm(4, 4)), Residual, (2, 4, 5, 7)),
        (Residual(nn.Sequential(depthwise(4))), Residual, (2, 4, 5, 7)),
        (NormLinear(4, 3), nn.Linear, (2, 4)),
    ],
)
def test_fused_layers_compute_the_same(module, kind, shape):
    module = settled(module)
    x = torch.randn(*shape, dtype=torch.float64)
    inference = fused(module)
    assert type(inference) is kind
    torch.testing.assert_close(inference(x), module(x), atol=1e-12, rtol=1e-12)
    assert not [m for m in inference.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        ConvNorm(2, 2, 4)


@pytest.mark.parametrize("compiled", [False, True])
def test_recomputation_counts_a_batch_once(compiled):
    module = ConvNorm(3, 4, 3, relu=True)
    plain, x = copy.deepcopy(module), torch.randn(5, 3, 4, 4)
    plain(x).square().sum().backward()
    run = torch.compile(recompute, fullgraph=True, backend="aot_eager") if compiled else recompute
    run(module, x).square().sum().backward()
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], tensor)
    assert module.bn.num_batches_tracked == 1 and module.bn.momentum == 0.1
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
