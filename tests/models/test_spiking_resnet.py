"""Spiking ResNet: its neurons and blocks written out, time in one go and step by step, feature maps, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.layers.spiking import LeakyIntegrateAndFire, spike


@pytest.fixture
def model() -> Any:
    """Norms that do something, in float64, eval mode."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("spiking_resnet_nano", dtype=torch.float64, time_steps=4, tau=1.6)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                torch.nn.init.normal_(tensor, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("threshold", [1.0, 0.7])
def test_neurons_are_written_out(threshold):
    x = 1.5 * torch.randn(5, 2, 3).double()
    spikes = LeakyIntegrateAndFire(5, tau=2.0, threshold=threshold)(x.flatten(0, 1))
    for row in range(2):
        for place in range(3):
            v = 0.0
            for step in range(5):
                u = 0.5 * v + x[step, row, place].item()
                s = float(u >= threshold)
                v = u - threshold * s
                assert spikes.view(5, 2, 3)[step, row, place] == s
    assert 0 < spikes.mean() < 1


def test_the_derivative_of_a_spike_is_a_triangle():
    x = torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    y = spike(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0, 1, 1, 1, 1] and x.grad.tolist() == [0, 0, 0.75, 1, 0.5, 0, 0]


def test_gradients_through_time_are_written_out():
    """Two steps: d s_2 / d x_1 = g(u_2) leak (1 - g(u_1)), the path of the reset included."""
    x = torch.tensor([[0.8], [0.7]], dtype=torch.float64, requires_grad=True)
    LeakyIntegrateAndFire(2, tau=2.0)(x)[1].sum().backward()
    u1, u2 = 0.8, 0.5 * 0.8 + 0.7
    g1, g2 = 1 - abs(u1 - 1), 1 - abs(u2 - 1)
    assert x.grad.flatten().tolist() == pytest.approx([g2 * 0.5 * (1 - g1), g2])


def norm(bn: Any, x: Tensor) -> Tensor:
    shift, scale = (t[:, None, None] for t in (bn.running_mean, bn.weight * (bn.running_var + bn.eps).rsqrt()))
    return (x - shift) * scale + bn.bias[:, None, None]


def test_the_network_is_written_out(model):
    """One step after another, as the authors' code runs it."""
    images, total = torch.randn(3, 1, 8, 8).double(), 0.0
    potentials: dict[Any, Any] = {}

    def fire(neuron: Any, current: Tensor) -> Tensor:
        u = (1 - 1 / 1.6) * potentials.get(neuron, 0.0) + current
        s = (u >= 1).double()
        potentials[neuron] = u - s
        return s

    for _ in range(4):
        x = F.conv2d(images, model.stages[0].downsample[0].conv.weight, padding=1)
        for stage in model.stages:
            for block in stage.blocks:
                s = fire(block.lif1, norm(block.bn1, x))
                first, second = block.conv1.conv, block.conv2
                y = norm(block.conv1.bn, F.conv2d(s, first.weight, first.bias, first.stride, 1))
                y = F.conv2d(fire(block.lif2, y), second.weight, second.bias, padding=1)
                same = isinstance(block.shortcut, torch.nn.Identity)
                short = s if same else F.conv2d(s, block.shortcut.weight, block.shortcut.bias, first.stride)
                x = y + short
        rates = fire(stage.lif, norm(stage.bn, x)).mean((2, 3))
        total = total + F.linear(rates, model.head.weight, model.head.bias)
    torch.testing.assert_close(model(images), total / 4)


def test_step_by_step_is_the_whole(model):
    images = torch.randn(3, 1, 8, 8).double()
    expected = model.spikes(images)
    with model.step_by_step():
        steps = [model.spikes(images) for _ in range(4)]
    assert torch.equal(torch.cat(steps), expected)
    assert torch.equal(model.spikes(images), expected), "as it was before"


def test_maps_are_means_over_steps(model):
    images = torch.randn(3, 1, 8, 8).double()
    last, maps = model.forward_intermediates(images)
    assert torch.equal(last, model.forward_features(images)) and last.shape == (3, 32, 4, 4)
    assert [tuple(one.shape) for one in maps] == [(3, 16, 8, 8), (3, 32, 4, 4)]
    first = model.stages[0](images)
    torch.testing.assert_close(maps[0], first.view(4, 3, 16, 8, 8).mean(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_steps": 0}, "time_steps must be"),
        ({"tau": 0.9}, "tau must be at least 1"),
        ({"stem_strides": (1, 2)}, "the stem is one convolution"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("spiking_resnet_nano", **options)
