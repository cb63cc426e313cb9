"""The programs of a model, made when they are first run and kept while the model is as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from zoo.kernels import native
from zoo.kernels.dispatch import AUTOCAST_DEVICES, is_automatic
from zoo.kernels.operator import under_transforms
from zoo.kernels.step_program import SOURCE, Value
from zoo.kernels.step_program.program import DTYPES, ROWS
from zoo.layers.linear import decoding
from zoo.layers.state import State
from zoo.layers.step.writer import Undescribed, Writer


class Steps(Writer):
    """The steps of a batch of so many rows through blocks."""

    def __init__(self, blocks: Sequence[nn.Module], rows: int, dim: int):
        super().__init__(rows)
        self.x = Value(torch.zeros(rows, dim))
        for block in blocks:
            self.again()
            self.binders.append([])
            self.call(block, self.x)
        self.finish()

    def __call__(self, x: Tensor, states: Sequence[State]) -> Tensor | None:
        """x (B, 1, dim) past the blocks, whose states advance; None where these states are not for it."""
        pairs = [(b, b.path(s)) for bs, s in zip(self.binders, states, strict=True) for b in bs]
        if not all(binder.ready(state) for binder, state in pairs):
            return None
        for binder, state in pairs:
            binder.advance(state)
        self.x.tensor.copy_(x[:, 0])
        self.run()
        self.holding.clear()
        return self.x.tensor.to(x.dtype, copy=True)[:, None]


class Stepper:
    """The programs of a model, one for each number of rows."""

    def __init__(self, blocks: Sequence[nn.Module]):
        self.blocks, self.made = blocks, cast("dict[int, Steps | None]", {})
        self.lock = threading.Lock()  # a program has one memory

    def __call__(self, x: Tensor, states: Any) -> Tensor | None:
        """x (B, 1, dim) through the blocks, or None where they have to be called."""
        if not _is_step(x):
            return None
        with self.lock:
            return self._run(x, states)

    def _run(self, x: Tensor, states: Any) -> Tensor | None:
        steps = self.made.get(len(x))
        if steps is None and len(x) in self.made:
            return None
        if steps is None or not steps.is_current:
            self.made[len(x)] = steps = self._write(x)
        return None if steps is None else steps(x, states)

    def _write(self, x: Tensor) -> Steps | None:
        try:
            return Steps(self.blocks, len(x), x.shape[2])
        except (Undescribed, ValueError):
            return None


def _is_step(x: Tensor) -> bool:
    low = "cpu" in AUTOCAST_DEVICES and torch.is_autocast_enabled("cpu")
    return (
        x.shape[1] == 1 and 0 < len(x) <= ROWS and x.device.type == "cpu" and x.dtype in DTYPES and type(x) is Tensor
        and not torch.is_grad_enabled() and not low and not torch.compiler.is_compiling() and not under_transforms()
        and is_automatic() and not _has_any_global_hook() and torch._C._len_torch_dispatch_stack() == 0
        and native.obstacle(SOURCE, x.device) is None
    )  # fmt: skip


@contextmanager
def programmed(model: nn.Module) -> Iterator[None]:
    """As ``decoding``, and the blocks of a language model run as one program where they can."""
    held, mine = vars(model), "stepper" not in vars(model)
    held.setdefault("stepper", Stepper(model.blocks))  # type: ignore[arg-type]
    try:
        with decoding(model):
            yield
    finally:
        if mine:
            held.pop("stepper", None)
