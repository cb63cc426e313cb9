"""Gradients by recomputation: the backward of an operation from its differentiable forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def recomputed_gradients(
    forward: Callable, inputs: Sequence[Tensor | None], arriving: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of ``forward(*inputs)`` for its floating inputs, in order; nothing is kept between the two passes.

    ``forward`` returns a tuple of tensors, the first of which ``arriving`` are the gradients of; None and integer or
    boolean inputs are passed on and have no gradient.
    """
    with _autograd_recording():
        leaves = [x.detach().requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs]
        wanted = [x for x in leaves if x is not None and x.requires_grad]
        gradients = torch.autograd.grad(*_pairs(forward(*leaves), wanted, arriving), allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True)]


def recorded_gradients(
    forward: Callable, inputs: Sequence[Tensor | None], arriving: Sequence[Tensor]
) -> list[Tensor | None]:
    """The same as functions of the inputs, for second derivatives: one for each input, None where none is recorded."""
    leaves = [x.view_as(x) if x is not None and x.requires_grad else x for x in inputs]  # apart, if one came twice
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    pairs = _pairs(forward(*leaves), wanted, arriving)
    found = iter(torch.autograd.grad(*pairs, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in leaves]


def _pairs(outputs: Sequence[Tensor], wanted: list[Tensor], arriving: Sequence[Tensor]) -> tuple:
    """The arguments of ``torch.autograd.grad``: the outputs that depend on an input, and their gradients."""
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, arriving, strict=False) if o.requires_grad]
    return [o for o, _ in pairs], wanted, [g for _, g in pairs]


@contextmanager
def _autograd_recording() -> Iterator[None]:
    """Record gradients also inside a custom operator, where the dispatcher leaves the autograd keys out."""
    keys = torch._C.DispatchKey
    included = torch._C._dispatch_tls_local_include_set() | torch._C.DispatchKeySet(keys.ADInplaceOrView)
    autograd = torch._C.DispatchKeySet(keys.AutogradFunctionality) | torch._C.DispatchKeySet(keys.ADInplaceOrView)
    excluded = torch._C._dispatch_tls_local_exclude_set() - autograd
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield
