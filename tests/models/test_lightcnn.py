"""The lightweight CNN: its cost, the graph written out, errors; its training: tests/train/test_dual_input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import zoo


@pytest.mark.parametrize(("name", "macs"), [("lightcnn_mnist", 568_240), ("lightcnn_cifar", 1_109_760)])
def test_cost(name, macs):
    model: Any = zoo.create_model(name, device="meta")
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.empty(1, model.config.in_chans, *model.config.image_shape, device="meta"))
    assert counter.get_total_flops() == 2 * macs


def test_written_out():
    model: Any = zoo.create_model("lightcnn_mnist").double()
    first, second = torch.randn(2, 3, 1, 28, 28, dtype=torch.float64).unbind()

    def branch(x: torch.Tensor, half: int) -> torch.Tensor:
        for block in model.blocks:
            weight, bias = (t.chunk(2)[half] for t in (block.conv.weight, block.conv.bias))
            x = F.max_pool2d(F.conv2d(x, weight, bias).clamp(min=0), 2)
        assert x.shape == (3, 20, 5, 5)
        return F.linear(x.flatten(1), model.branch_heads[half].weight, model.branch_heads[half].bias)

    ends = model.forward_branches(first, second)
    torch.testing.assert_close(ends, (branch(first, 0), branch(second, 1)))
    joined = torch.cat([branch(first, 0), branch(first, 1)], dim=1) @ model.join.weight.T + model.join.bias
    torch.testing.assert_close(model(first), joined.clamp(min=0) @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 3}, "img_size 3 leaves nothing after 2 convolutions"),
        ({"padding": 2}, "padding must be 0 or 1, got 2"),
        ({"dims": ()}, "dims must hold positive integers"),
        ({"drop_path_rate": 0.1}, "no residual branches to drop"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("lightcnn_nano", **options)
