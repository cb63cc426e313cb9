"""Gradient checkpointing that updates batch norms once, and what may take its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Run = Callable[..., Tensor]
_run: ContextVar[Run | None] = ContextVar("run", default=None)


@contextmanager
def recomputed_by(run: Run) -> Iterator[None]:
    """Within it ``recompute`` is ``run(module, x, *args)``: another way of not storing what a block computes."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def recompute(module: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """``module(x, *args)``, computed again in the backward pass instead of storing its activations.

    The repetition leaves the running statistics of batch norms alone. See ``recomputed_by``.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and (run := _run.get()) is not None:
        return run(module, x, *args)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(module)

    if compiling:  # the compiler takes no context, and writes a buffer once in any case
        return checkpoint(module, x, *args, use_reentrant=False)  # type: ignore[return-value]
    return checkpoint(module, x, *args, use_reentrant=False, context_fn=contexts)  # type: ignore[return-value]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, the batch norms of ``module`` normalise by the batch but leave their running statistics alone."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
