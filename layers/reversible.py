"""Reversible layers: the backward pass computes the activations again from the output, so none is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.kernels.dispatch import compute_dtype, under_transforms
from zoo.layers.precision import computes_in
from zoo.layers.recompute import frozen_statistics
from zoo.layers.replay import autocast_mode, if_drawn, random_state, replayed


class ReversibleSequence(nn.Module):
    r"""Additive couplings of the two halves of the channels, x = (x1, x2) along axis 1, one for each branch f:

        forward    (x1, x2) -> (x2, x1 + f(x2))
        inverse    (y1, y2) -> (y2 - f(y1), y1)

    Two of them, f and g, are the reversible block y1 = x1 + f(x2), y2 = x2 + g(y1). The backward pass undoes the
    couplings from the last to the first and differentiates each branch at its recomputed input: what is kept is the
    output and, for a branch that draws random numbers (dropout), the state of the generators, at the cost of one more
    forward pass. Branches run again under the autocast mode they ran under, and batch norms update their statistics
    once. The halves are summed in float32 or wider, as the inverse loses what a sum rounds away.

    A compiled or exported program, one without gradients and one under torch.func's transforms compute the same without
    recomputation.

    Args:
        branches: modules that keep the shape, take half of the channels and leave their input as it is.
        recompute: False stores the activations, as other layers do.

    Papers: Gomez et al., "The Reversible Residual Network", arXiv 1707.04585; Brügger et al., "A Partially Reversible
    U-Net for Memory-Efficient Volumetric Image Segmentation", arXiv 1906.06148.
    """

    def __init__(self, branches: Iterable[nn.Module], recompute: bool = True):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) -> the same shape and dtype.

        Raises:
            ValueError: for an odd number of channels.
        """
        stream = self._stream(x)
        plain = torch.compiler.is_compiling() or under_transforms()
        if self.recompute and torch.is_grad_enabled() and not plain:
            parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return _Recomputed.apply(stream, self.branches, *parameters).to(x.dtype)  # type: ignore[union-attr]
        x1, x2 = stream.chunk(2, dim=1)
        for branch in self.branches:
            x1, x2 = x2, x1 + _run(branch, x2)
        return torch.cat([x1, x2], dim=1).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """The x whose ``forward`` is y, (B, C, ...) -> the same shape and dtype.

        Raises:
            ValueError: for an odd number of channels.
        """
        y1, y2 = self._stream(y).chunk(2, dim=1)
        for branch in reversed(self.branches):
            y1, y2 = y2 - _run(branch, y1), y1
        return torch.cat([y1, y2], dim=1).to(y.dtype)

    def _stream(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] % 2:
            raise ValueError(
                f"a reversible layer halves the channels (axis 1), whose number must be even: got {tuple(x.shape)}"
            )
        return x.to(compute_dtype(x))


class Branch(NamedTuple):
    """A function of half of the channels, and the module whose parameters it has."""

    call: Callable[[Tensor], Tensor]
    module: nn.Module


def couple(
    branches: Sequence[Branch], x1: Tensor, x2: Tensor, autocast: Callable[[], AbstractContextManager[Any]]
) -> tuple[Tensor, Tensor, list[list[Tensor] | None]]:
    """The couplings of x1 and x2, and for each branch that drew random numbers the state of the generators before."""
    states = []
    for branch in branches:
        before = random_state(x1.device)
        with autocast():
            x1, x2 = x2, x1 + branch.call(x2)
        states.append(if_drawn(before, x1.device))
    return x1, x2, states


def undo(
    branches: Sequence[Branch],
    states: Sequence[list[Tensor] | None],
    autocast: Callable[[], AbstractContextManager[Any]],
    y: Sequence[Tensor],
    dy: Sequence[Tensor],
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], dict[nn.Parameter, Tensor]]:
    """From the two outputs of ``couple`` and their gradients the inputs, their gradients and those of parameters."""
    gradients: dict[nn.Parameter, Tensor] = {}
    (y1, y2), (dy1, dy2) = y, dy
    for branch, state in zip(reversed(branches), reversed(states), strict=True):
        x2 = y1.detach().requires_grad_()
        own = [parameter for parameter in branch.module.parameters() if parameter.requires_grad]
        with torch.enable_grad(), autocast(), replayed(state, y1.device), frozen_statistics(branch.module):
            f = branch.call(x2.view_as(x2))  # FLOP counters put hooks on a module's inputs, but not on leaves
        dx2, *found = torch.autograd.grad(f, [x2, *own], dy2.to(f.dtype), materialize_grads=True)
        for parameter, gradient in zip(own, found, strict=True):
            gradients[parameter] = gradients[parameter] + gradient if parameter in gradients else gradient
        y1, y2 = y2 - f.detach(), y1
        dy1, dy2 = dy2, dy1 + dx2
    return (y1, y2), (dy1, dy2), gradients


class _Recomputed(torch.autograd.Function):
    """The couplings; parameters are inputs, so that their gradients go the way of all others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branches: nn.ModuleList, *parameters: Tensor) -> Tensor:
        ctx.branches, ctx.autocast = (
            [Branch(partial(_run, branch), branch) for branch in branches],
            autocast_mode(x.device),
        )
        x1, x2 = x.detach().chunk(2, dim=1)  # views of x itself would claim to require gradients
        x1, x2, ctx.states = couple(ctx.branches, x1, x2, ctx.autocast)
        y, ctx.parameters = torch.cat([x1, x2], dim=1), parameters
        ctx.save_for_backward(y, *parameters)  # the parameters, so that a change before the backward pass is noticed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y = ctx.saved_tensors[0]
        halves = y.chunk(2, dim=1), grad.chunk(2, dim=1)
        _, dx, gradients = undo(ctx.branches, ctx.states, ctx.autocast, *halves)
        return torch.cat(dx, dim=1), None, *(gradients[parameter] for parameter in ctx.parameters)


def _run(branch: nn.Module, x: Tensor) -> Tensor:
    """The branch in the dtype of its parameters."""
    return branch(x.to(computes_in(branch, x).dtype))
