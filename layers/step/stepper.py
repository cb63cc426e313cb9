"""The programs of a model, made when they are first run and kept while the model is as it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from zoo.kernels import native
from zoo.kernels.dispatch import AUTOCAST_DEVICES, is_automatic, under_transforms
from zoo.kernels.step_program import SOURCE, Value
from zoo.kernels.step_program.records import DTYPES, ROWS
from zoo.layers.linear import decoding
from zoo.layers.state import State
from zoo.layers.step.writer import Undescribed, Writer

_USERS = threading.RLock()  # one thread at a time begins or ends to use a stepper, also where garbage is collected


class Stepped(Protocol):
    """A stack of blocks between an embedding and a head, whose part of the program it says itself."""

    blocks: Any

    def write_blocks(self, p: Writer, x: Value) -> None:
        """What is computed between."""
        ...

    def read_step(self, p: Writer, x: Value) -> Value:
        """What the head makes of x (rows, dim) past all blocks: logits."""
        ...


class Steps(Writer):
    """The steps of a batch of so many rows through a model.

    Attributes:
        unread: why the head is not in the program; None where it is.
    """

    def __init__(self, model: Stepped, rows: int, dim: int):
        super().__init__(rows)
        self.x, self.unread = Value(torch.zeros(rows, dim)), None
        self.visit(model.blocks)
        model.write_blocks(self, self.x)
        self.past_blocks = len(self.records)
        self.again()
        try:
            self.logits = self.whole(model.read_step(self, self.x))
        except Undescribed as reason:
            self.unread = str(reason)
        self.finish()

    def __call__(self, x: Tensor, states: Sequence[State], head: bool) -> Value | None:
        """x (B, 1, dim) past the blocks, whose states advance, or what the head makes of it; None where these states
        are not for it. A state advances when all is computed that is before its layer."""
        pairs = [(b, b.path(s)) for bs, s in zip(self.binders, states, strict=True) for b in bs]
        if not all(binder.ready(state) for binder, state in pairs):
            return None
        for layer in self.reporting:
            layer.report({}, {})
        self.x.tensor.copy_(x[:, 0])
        done = 0
        for binder, state in pairs:
            binder.advance(state)
            if binder.is_called(state):
                self.run(done, binder.called[0])
                binder.call(state)
                done = binder.called[1]
        self.run(done, None if head else self.past_blocks)
        self.holding.clear()
        return self.logits if head else self.x


class Stepper:
    """The programs of a model, one for each number of rows. A copy, with its model, has none, and no users.

    Attributes:
        users: for each of those within ``programmed`` whether nobody changes the model meanwhile; where all say so, a
            program is not compared with the model before each run. Without any, nothing is run.

    Args:
        model: whose steps they are.
    """

    def __init__(self, model: Stepped):
        self.model, self.made = model, cast("dict[int, Steps | None]", {})
        self.users: list[bool] = []
        self.lock = threading.Lock()  # a program has one memory

    def __deepcopy__(self, memo: dict[int, Any]) -> Stepper:
        return Stepper(copy.deepcopy(self.model, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return Stepper, (self.model,)

    def __call__(self, x: Tensor, states: Any) -> Tensor | None:
        """x (B, 1, dim) through the blocks, or None where they have to be called."""
        return self._run(x, states, None)

    def logits(self, x: Tensor, states: Any, dtype: torch.dtype) -> Tensor | None:
        """x (B, 1, dim) through the blocks and the head (B, 1, vocab_size), or None where they have to be called."""
        return self._run(x, states, dtype)

    def _run(self, x: Tensor, states: Any, dtype: torch.dtype | None) -> Tensor | None:
        if not self.users or not _is_step(x):
            return None
        with self.lock:
            steps, head = self._steps(x), dtype is not None
            if steps is None or (head and steps.unread is not None):
                return None
            found = steps(x, states, head)
            return None if found is None else found.tensor.to(dtype or x.dtype, copy=True)[:, None]

    def _steps(self, x: Tensor) -> Steps | None:
        steps = self.made.get(len(x))
        if len(x) not in self.made or (steps is not None and not all(self.users) and not steps.is_current):
            self.made[len(x)] = steps = self._write(x)
        return steps

    def _write(self, x: Tensor) -> Steps | None:
        try:
            return Steps(self.model, len(x), x.shape[2])
        except (Undescribed, ValueError):
            return None


def obstacle(model: Any) -> str | None:
    """Why a language model decodes layer by layer on the CPU; None where its steps are programs of C.

    Args:
        model: in evaluation mode.
    """
    if not model.writes_steps:
        return "its blocks are not run one after the other"
    if reason := native.obstacle(SOURCE, torch.device("cpu")):
        return reason
    try:
        return Steps(model, 1, model.stream_dim).unread
    except (Undescribed, ValueError) as error:
        return str(error)


def _is_step(x: Tensor) -> bool:
    low = "cpu" in AUTOCAST_DEVICES and torch.is_autocast_enabled("cpu")
    return (
        x.shape[1] == 1 and 0 < len(x) <= ROWS and x.device.type == "cpu" and x.dtype in DTYPES and type(x) is Tensor
        and not torch.is_grad_enabled() and not low and not torch.compiler.is_compiling() and not under_transforms()
        and is_automatic() and not _has_any_global_hook() and torch._C._len_torch_dispatch_stack() == 0
        and native.obstacle(SOURCE, x.device) is None
    )  # fmt: skip


@contextmanager
def programmed(model: nn.Module, alone: bool = False) -> Iterator[None]:
    """As ``decoding``, and the blocks of a language model run as one program where they can.

    A program copies small weights and options. It is written anew once a parameter or buffer was written to by
    operations that autograd counts, or another tensor, module or hook took its place; writes through ``.data`` and
    options that are set (a norm's ``eps``, ``top_k``) are not seen before the outermost block ends: make them outside.

    Args:
        model: a language model; several threads may do so with the same one.
        alone: nobody changes the model within, so that a program is not compared with it before each run.
    """
    held = vars(model)
    with _USERS:
        stepper: Stepper = held.setdefault("stepper", Stepper(model))  # type: ignore[arg-type]
        stepper.users.append(alone)
        held["stepper"] = stepper
    try:
        with decoding(model):
            yield
    finally:
        with _USERS:
            stepper.users.remove(alone)
            if not stepper.users and held.get("stepper") is stepper:
                del held["stepper"]
