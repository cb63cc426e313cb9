"""SLTT: gradients through the layers of each step, written out; where they are those of the whole; memory over time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers.batch_norm import BatchNorm2d
from zoo.train.memory import lean
from zoo.train.memory.count import saved_bytes

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def network(**options: Any) -> Any:
    """With batch norms that normalise by what they remember, so that steps do not see each other there."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("spiking_resnet_nano", dtype=torch.float64, **options)
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.frozen = True
            torch.nn.init.normal_(module.running_mean, std=0.3)
    return model.train()


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(IMAGES).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("options", [{"time_steps": 1, "tau": 3.0}, {"time_steps": 5, "tau": 1.0}])
def test_with_one_step_or_no_memory_they_are_those_of_the_whole(options):
    model = network(**options)
    expected, y = gradients(model), model(IMAGES)
    lean(model, "sltt")
    torch.testing.assert_close(model(IMAGES), y)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def written_out(model: Any, chosen: list[int]) -> dict[str, Tensor]:
    """The authors' loop: potentials detached, gradients of the chosen steps added up."""
    steps = model.config.time_steps
    rates = model.forward_features(IMAGES).detach().requires_grad_()
    model.forward_head(rates).square().sum().backward()
    dy = rates.grad / steps
    head = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with model.step_by_step():
        for step in range(steps):
            spikes = model.spikes(IMAGES)
            if step in chosen:
                (spikes * dy).sum().backward()
    return head | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_the_loop_over_steps():
    model = network(time_steps=4, tau=2.0)
    whole = gradients(model)
    model.zero_grad()
    expected = written_out(model, [0, 1, 2, 3])
    lean(model, "sltt")
    found = gradients(model)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    torch.testing.assert_close(found["head.weight"], whole["head.weight"])
    far = [not torch.allclose(found[name], whole[name], rtol=1e-3) for name in found]
    assert any(far), "time is left out of the gradients"


def test_k_steps_drawn_of_a_batch():
    model = network(time_steps=4)
    plain = copy.deepcopy(model)
    lean(model, "sltt", steps=2)
    torch.manual_seed(3)
    chosen = torch.randperm(4)[:2].tolist()
    torch.manual_seed(3)
    found, expected = gradients(model), written_out(plain, chosen)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_memory_does_not_depend_on_the_steps():
    def most(steps: int, *methods: str) -> int:
        model: Any = zoo.create_model("spiking_resnet_nano", time_steps=steps).train()
        lean(model, *methods)
        return saved_bytes(model, lambda: model(IMAGES.float()).square().sum()).most

    assert most(2, "sltt") == most(8, "sltt") < most(2) < most(8) / 3.5


def test_batch_norms_see_each_step_once():
    model: Any = zoo.create_model("spiking_resnet_nano", time_steps=3).train()
    lean(model, "sltt")
    model(IMAGES.float()).square().sum().backward()
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, BatchNorm2d)} == {3}


def test_eval_mode_and_errors_leave_it_whole():
    model = network(time_steps=3)
    expected = model.eval()(IMAGES)
    lean(model, "sltt")
    assert torch.equal(model(IMAGES), expected)
    with pytest.raises(ValueError, match="images must have shape"):
        model.train()(IMAGES[0])
    assert model.through_time is None
    for options, message in [({"steps": 0}, "steps must be at least 1"), ({"steps": 4}, "at most the model's 3")]:
        with pytest.raises(ValueError, match=message):
            lean(network(time_steps=3), "sltt", **options)
    with pytest.raises(ValueError, match="sltt is for spiking networks, not ViT: take checkpointing"):
        lean(zoo.create_model("vit_nano", device="meta"), "sltt")
