"""torch.func and second derivatives go through models whose layers are the zoo's own operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad

import zoo
from zoo.kernels import implementation

NAMES = ["based_nano", "mamba_nano", "mamba2_nano", "vim_nano"]


def loss_of(name: str):
    """The mean square of the model's outputs as a function of its parameters, and these."""
    model = zoo.create_model(name, depth=2).eval()
    tokens = torch.randint(0, 50, (1, 8))
    inputs = torch.rand(1, 1, 8, 8) if name == "vim_nano" else tokens

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(model, parameters, (inputs,)).square().mean()

    return loss, dict(model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_functional_gradients_are_those_of_autograd(name):
    loss, parameters = loss_of(name)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for found, value in zip(grad(loss)(parameters).values(), expected, strict=True):
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_under_the_reference(name):
    """Both ways to the gradient of the gradient's norm; without the reference, what is missing is said."""
    loss, parameters = loss_of(name)

    def steepness(parameters: dict[str, Tensor]) -> Tensor:
        return torch.stack([g.square().sum() for g in grad(loss)(parameters).values()]).sum()

    with implementation("reference"):
        nested = grad(steepness)(parameters)
        first = torch.autograd.grad(loss(parameters), list(parameters.values()), create_graph=True)
        steep = torch.stack([g.square().sum() for g in first]).sum()
    second = torch.autograd.grad(steep, list(parameters.values()))  # each call knows how it was computed
    for found, value in zip(second, nested.values(), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4 * value.abs().max().item())
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad(steepness)(parameters)
