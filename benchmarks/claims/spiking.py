"""Spiking networks trained without gradients through time."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.common import interleaved
from zoo.train.memory import lean
from zoo.train.memory.count import saved_bytes


@claim(
    "spiking_resnet", "2302.14311", says="Without gradients through time training takes more than 70 % less memory.",
    source="abstract: more than 70 % less memory on ImageNet; six steps", evidence="cost",
    value="share of the kept bytes that is saved", at_least=0.7,
)  # fmt: skip
def sltt_memory() -> Found:
    """Bytes that autograd keeps at most of two images and six steps of spiking_resnet18; over steps of the nano."""

    def most(name: str, images: Tensor, *methods: str, **options: Any) -> int:
        torch.manual_seed(0)
        model: Any = zoo.create_model(name, **options).train()
        lean(model, *methods)
        return saved_bytes(model, lambda: model(images).square().sum()).most

    images = torch.randn(2, 3, 32, 32)
    found: dict[str, Any] = {"BPTT": most("spiking_resnet18", images), "SLTT": most("spiking_resnet18", images, "sltt")}
    small = torch.randn(8, 1, 8, 8)
    for steps in (2, 4, 8, 16):
        found[f"nano, {steps} steps"] = [
            most("spiking_resnet_nano", small, *way, time_steps=steps) for way in ((), ("sltt",))
        ]
    return Found(1 - found["SLTT"] / found["BPTT"], found)


@claim(
    "spiking_resnet", "2302.14311", says="Without gradients through time training takes more than half less time.",
    source="abstract: more than 50 % less time on ImageNet, where a loss a step spares the second forward pass",
    evidence="measured", value="share of the time of a training step that is saved", at_least=0.5,
)  # fmt: skip
def sltt_time() -> Found:
    """A training step of eight images and six steps of spiking_resnet18, in turns: whole, SLTT, and two of the six
    steps."""

    def step(model: Any, images: Tensor) -> float:
        model.zero_grad()
        loss = model(images).square().sum()
        loss.backward()
        return float(loss.detach())

    calls, images = {}, torch.randn(8, 3, 32, 32)
    for name, options in (("BPTT", None), ("SLTT", {}), ("SLTT-2", {"steps": 2})):
        torch.manual_seed(0)
        model: Any = zoo.create_model("spiking_resnet18").train()
        if options is not None:
            lean(model, "sltt", **options)
        calls[name] = partial(step, model, images)
    runs, _ = interleaved(calls, budget=20.0)
    seconds = {name: statistics.median(times) for name, times in runs.items()}
    return Found(1 - seconds["SLTT"] / seconds["BPTT"], seconds)


@claim(
    "spiking_resnet", "2302.14311", says="The paths through time contribute little to the gradient.",
    source="section 4.1, figure 2; the authors' neurons keep a tenth of their potential", evidence="identity",
    value="cosine of both gradients at six steps and tau 1.1", at_least=0.95,
)  # fmt: skip
def sltt_gradients() -> Found:
    """Gradients of spiking_resnet_nano with and without time, batch norms in eval mode, for several time constants."""
    found = {}
    for tau in (1.1, 2.0, 5.0):
        flat = []
        for methods in ((), ("sltt",)):
            torch.manual_seed(0)
            model: Any = zoo.create_model("spiking_resnet_nano", tau=tau, dtype=torch.float64).train()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            lean(model, *methods)
            images, labels = torch.randn(32, 1, 8, 8, dtype=torch.float64), torch.arange(32) % 10
            nn.functional.cross_entropy(model(images), labels).backward()
            flat.append(torch.cat([p.grad.flatten() for p in model.stages.parameters()]))
        found[f"tau {tau}"] = nn.functional.cosine_similarity(*flat, dim=0).item()
    return Found(found["tau 1.1"], found)
