"""SLTT: spiking networks whose gradients go through the layers of each step, and through no time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.layers.options import require_at_least
from zoo.layers.recompute import frozen_statistics
from zoo.layers.replay import autocast_mode, if_drawn, random_state, replayed
from zoo.train.memory.method import Memory
from zoo.vision.spiking_resnet import SpikingResNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class SLTT(Memory, kind="sltt"):
    """Of a spiking network no activation is kept. The backward pass goes through the steps in the order of time.

    In each it computes the step again from the potentials that the one before it left, and adds up the step's
    gradients, as if those potentials were constants: what the paper finds to be small, all the smaller the more the
    neurons forget. The memory does not depend on the number of steps. With one step, or neurons that forget everything
    (tau 1), these are the gradients of the whole; those of what comes behind the spikes always are.

    Its authors' loop takes a loss of each step and computes none twice; here the loss is whatever the task has, of the
    mean over steps, for one more forward pass. Batch norms see one step at a time, as theirs do.

    Paper: Meng et al., "Towards Memory- and Time-Efficient Backpropagation for Training Spiking Neural Networks", arXiv
    2302.14311.
    """

    steps: int | None = None
    """K of SLTT-K: so many steps of each batch, drawn anew, give gradients; None for all."""

    def check(self, model: nn.Module) -> None:
        """A spiking network of at least so many steps."""
        if not isinstance(model, SpikingResNet):
            raise ValueError(f"sltt is for spiking networks, not {type(model).__name__}: take checkpointing")
        require_at_least(1, steps=self.steps)
        if self.steps is not None and self.steps > model.config.time_steps:
            raise ValueError(f"sltt: steps must be at most the model's {model.config.time_steps}, got {self.steps}")

    @contextmanager
    def forward(self, model: Any) -> Iterator[None]:
        """Its spikes are computed step by step."""
        model.through_time = partial(_rates, steps=self.steps or model.config.time_steps)
        try:
            yield
        finally:
            model.through_time = None


def _rates(model: SpikingResNet, images: Tensor, steps: int) -> Tensor:
    chosen = sorted(torch.randperm(model.config.time_steps)[:steps].tolist())
    parameters = [parameter for parameter in model.stages.parameters() if parameter.requires_grad]
    return _Sliced.apply(images, model, chosen, *parameters)  # type: ignore[return-value]


class _Sliced(torch.autograd.Function):
    """Rates (B, dim, h, w) of images (B, C, H, W); parameters are inputs, so that their gradients go their way."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: SpikingResNet, chosen: list[int], *parameters: Tensor) -> Tensor:
        ctx.model, ctx.chosen, ctx.drawn, total = model, chosen, [], 0.0
        ctx.autocast = autocast_mode(images.device)
        with model.step_by_step(), ctx.autocast():
            for _ in range(model.config.time_steps):
                before = random_state(images.device)
                total = total + model.spikes(images)
                ctx.drawn.append(if_drawn(before, images.device))
        ctx.save_for_backward(images, *parameters)
        return total / model.config.time_steps  # type: ignore[return-value,operator]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        images, *parameters = ctx.saved_tensors
        wanted = [images.detach().requires_grad_(ctx.needs_input_grad[0]), *parameters]
        wanted = [tensor for tensor in wanted if tensor.requires_grad]
        sums = [torch.zeros_like(tensor) for tensor in wanted]
        factor = 1 / len(ctx.drawn)  # also where fewer steps give gradients, as in the authors' loop
        with ctx.model.step_by_step(), frozen_statistics(ctx.model), ctx.autocast():
            for step, drawn in enumerate(ctx.drawn[: ctx.chosen[-1] + 1]):
                given = step in ctx.chosen
                with torch.set_grad_enabled(given), replayed(drawn, images.device):
                    spikes = ctx.model.spikes(wanted[0] if ctx.needs_input_grad[0] else images)
                if given:
                    found = torch.autograd.grad(spikes, wanted, factor * dy.to(spikes.dtype), materialize_grads=True)
                    for total, gradient in zip(sums, found, strict=True):
                        total.add_(gradient)
        dx = [sums.pop(0)] if ctx.needs_input_grad[0] else [None]
        return *dx, None, None, *sums
