"""Gradients by recomputation: the backward of an operation from its differentiable forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def recomputed_gradients(
    forward: Callable, inputs: Sequence[Tensor | None], output_gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of ``forward(*inputs)`` for its floating inputs, in order; nothing is kept between the two passes.

    ``forward`` returns a tuple of tensors, one for each of ``output_gradients``; None and integer or boolean inputs
    are passed on and have no gradient.
    """
    with _autograd_recording():
        leaves = [x.detach().requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs]
        outputs = forward(*leaves)
        wanted = [x for x in leaves if x is not None and x.requires_grad]
        gradients = torch.autograd.grad(outputs, wanted, output_gradients, allow_unused=True)
    # a gradient may be a part of a larger tensor, and the outputs of an operator may not
    return [
        torch.zeros_like(x) if g is None else g.clone() if g.storage_offset() else g
        for x, g in zip(wanted, gradients, strict=True)
    ]


@contextmanager
def _autograd_recording() -> Iterator[None]:
    """Record gradients also inside a custom operator, where the dispatcher leaves the autograd keys out."""
    keys = torch._C.DispatchKey
    included = torch._C._dispatch_tls_local_include_set() | torch._C.DispatchKeySet(keys.ADInplaceOrView)
    autograd = torch._C.DispatchKeySet(keys.AutogradFunctionality) | torch._C.DispatchKeySet(keys.ADInplaceOrView)
    excluded = torch._C._dispatch_tls_local_exclude_set() - autograd
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield
