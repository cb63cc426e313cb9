"""What is timed of an operation: its inputs on a device, a forward and a training call, and their bytes and FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.benchmarks.subjects import Inputs, Subject
from zoo.kernels.flops import flop_counter


def on_device(subject: Subject, length: int, device: str) -> Inputs:
    """The inputs of a subject; on CUDA activations are bfloat16, as in training."""
    torch.manual_seed(length)
    inputs = subject.inputs(length)
    if device == "cpu":
        return inputs
    kept = ("A", "D", "dt", "log_decay", "cos", "sin")
    half = {n for n, t in inputs.items() if t.is_floating_point() and n not in kept}
    return {n: t.to(device, torch.bfloat16 if n in half else t.dtype) for n, t in inputs.items()}


def trained(inputs: Inputs) -> set[str]:
    """Names of the inputs that get a gradient: all of floating point but the tables of rope."""
    return {name for name, t in inputs.items() if t.is_floating_point() and name not in ("cos", "sin")}


def forward(call: Callable[..., Any], inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found = call(**inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found if isinstance(found, Tensor) else found[0]


def training(call: Callable[..., Any], inputs: Inputs) -> Tensor:
    """Forward and backward; returns the gradient of the first input."""
    inputs = {n: t.detach().requires_grad_(n in trained(inputs)) for n, t in inputs.items()}
    found = call(**inputs)
    found = found if isinstance(found, Tensor) else found[0]
    gradients = torch.autograd.grad(found.float().square().mean(), [t for t in inputs.values() if t.requires_grad])
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return gradients[0]


MEASURES: dict[str, Callable[[Callable[..., Any], Inputs], Tensor]] = {"forward": forward, "training": training}


def cost(subject: Subject, inputs: Inputs, measure: str) -> tuple[int, int]:
    """(bytes that must move once, FLOPs by the formulas of the recurrence or product) of a call."""
    counter = flop_counter(display=False)
    with counter:
        output = MEASURES[measure](subject.call, inputs)
    gradients = sum(inputs[name].nbytes for name in trained(inputs))
    if measure == "forward":
        return sum(t.nbytes for t in inputs.values()) + output.nbytes, counter.get_total_flops()
    result = forward(subject.call, inputs).nbytes
    return sum(t.nbytes for t in inputs.values()) * 2 + gradients + 2 * result, counter.get_total_flops()
