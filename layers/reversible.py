"""Reversible layers: the backward pass computes the activations again from the output, so none is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.kernels.dispatch import compute_dtype, under_transforms
from zoo.layers.precision import computes_in
from zoo.layers.recompute import frozen_statistics


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


class _Recomputed(torch.autograd.Function):
    """The couplings; parameters are inputs, so that their gradients go the way of all others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branches: nn.ModuleList, *parameters: Tensor) -> Tensor:
        ctx.branches, ctx.autocast, ctx.states = branches, _autocast(x.device), []
        x1, x2 = x.detach().chunk(2, dim=1)  # views of x itself would claim to require gradients
        for branch in branches:
            before = _random_state(x.device)
            with ctx.autocast():
                x1, x2 = x2, x1 + _run(branch, x2)
            drawn = any(not torch.equal(a, b) for a, b in zip(before, _random_state(x.device), strict=True))
            ctx.states.append(before if drawn else None)
        y = torch.cat([x1, x2], dim=1)
        ctx.save_for_backward(y, *parameters)  # the parameters, so that a change before the backward pass is noticed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y = ctx.saved_tensors[0]
        gradients: dict[nn.Parameter, Tensor] = {}
        (y1, y2), (dy1, dy2) = y.chunk(2, dim=1), grad.chunk(2, dim=1)
        for branch, state in zip(reversed(ctx.branches), reversed(ctx.states), strict=True):
            x2 = y1.detach().requires_grad_()
            own = [parameter for parameter in branch.parameters() if parameter.requires_grad]
            with torch.enable_grad(), ctx.autocast(), _replayed(state, y.device), frozen_statistics(branch):
                f = _run(branch, x2.view_as(x2))  # FLOP counters put hooks on a module's inputs, but not on leaves
            dx2, *found = torch.autograd.grad(f, [x2, *own], dy2.to(f.dtype), materialize_grads=True)
            for parameter, gradient in zip(own, found, strict=True):
                gradients[parameter] = gradients[parameter] + gradient if parameter in gradients else gradient
            y1, y2 = y2 - f, y1
            dy1, dy2 = dy2, dy1 + dx2
        parameters = [parameter for parameter in ctx.branches.parameters() if parameter.requires_grad]
        return torch.cat([dy1, dy2], dim=1), None, *(gradients[parameter] for parameter in parameters)


def _run(branch: nn.Module, x: Tensor) -> Tensor:
    """The branch in the dtype of its parameters."""
    return branch(x.to(computes_in(branch, x).dtype))


def _autocast(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the present autocast mode, without its cache of cast weights: one filled without gradients has none."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return partial(torch.autocast, kind, dtype=dtype, enabled=enabled, cache_enabled=False)


def _random_state(device: torch.device) -> list[Tensor]:
    """States of the generators that a computation on ``device`` may draw from."""
    states = [torch.get_rng_state()]
    if device.type not in ("cpu", "meta"):
        states.append(torch.get_device_module(device).get_rng_state(*_which(device)))
    return states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """The argument that names a device to its module; that of mps knows one device and takes none."""
    return () if device.type == "mps" else (device,)


@contextmanager
def _replayed(states: list[Tensor] | None, device: torch.device) -> Iterator[None]:
    """Within it the generators are in ``states``, if any; afterwards as they were."""
    if states is None:
        yield
        return
    present = _random_state(device)
    try:
        _set_random_state(states, device)
        yield
    finally:
        _set_random_state(present, device)
