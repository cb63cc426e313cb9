"""What a way to train in less memory is: it is put on a model, and what the model computes stays what it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from zoo.config import from_json
from zoo.registry import nearest
from zoo.train.optim import unwrapped

MEMORIES: dict[str, type[Memory]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """One way to train in less memory: subclass it as a frozen dataclass, ``class StreamBP(Memory, kind="streambp")``.

    A method fills the hooks that it needs. It has no state of its own: what lasts a pass lives in ``forward``, what
    lasts longer in the optimiser or in the model, whose checkpoints then resume it.

    Attributes:
        saves: what takes less; two methods of the same exclude each other.
        sharded: it works on a model that is sharded over processes (FSDP2), too.
    """

    kind: ClassVar[str] = ""
    saves: ClassVar[str] = "activations"
    sharded: ClassVar[bool] = False

    def __init_subclass__(cls, *, kind: str = "", **rest: Any):
        super().__init_subclass__(**rest)
        if kind:
            cls.kind, MEMORIES[kind] = kind, cls

    def check(self, model: nn.Module) -> None:
        """Whether a model, perhaps without memory (meta), can be trained so.

        Raises:
            ValueError: it cannot; why, and the way out.
        """

    def install(self, model: nn.Module) -> None:
        """Prepare a model, in place, once; ``remove`` takes it back."""

    def remove(self, model: nn.Module) -> None:
        """The model as it was before ``install``."""

    def forward(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around each forward pass of a training step."""
        return nullcontext()

    def optimizer(self, model: nn.Module, build: Callable[[nn.Module], Optimizer]) -> Optimizer:
        """The optimiser, as ``build`` makes it or another in its place with the same parameter groups."""
        return build(model)

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """After each step of the optimiser, the first one being 1."""

    def trainer(self) -> dict[str, Any]:
        """Options of ``zoo train``'s trainer that it comes with, such as {"strategy": "fsdp2"}; given ones win."""
        return {}


class Lean:
    """Methods on a model: every forward pass with gradients, in training mode, runs as they have it.

    Args:
        model: plain, before DDP or FSDP2 is put around it.
        methods: none, one or several.

    Raises:
        ValueError: for methods that exclude each other or those that the model has, or that it has no room for.
    """

    def __init__(self, model: nn.Module, methods: Sequence[Memory]):
        check_together(methods)
        others = _leans(model)
        _check_beside(methods, others)
        if methods and unwrapped(model) is not model:
            kinds = ", ".join(method.kind for method in methods)
            raise ValueError(f"{kinds}: give the plain model, before torch.compile or DDP is put around it")
        for method in methods:
            method.check(model)
        self.model, self.methods, self.steps = model, tuple(methods), 0
        self.open: list[ExitStack] = []
        before = others[0].recomputed if others else getattr(model, "grad_checkpointing", False)
        self.recomputed = before  # which methods turn on and off
        with ExitStack() as undone:
            undone.callback(self._recompute_as_before)
            for method in self.methods:
                undone.callback(method.remove, model)
                method.install(model)
            undone.pop_all()
        self.hooks = []
        if methods:
            self.hooks.append(model.register_forward_pre_hook(self._enter))
            self.hooks.append(model.register_forward_hook(self._leave, always_call=True))

    def optimizer(self, build: Callable[[nn.Module], Optimizer]) -> Optimizer:
        """The optimiser of the model, ``build(model)`` unless a method has its own."""
        for method in self.methods:
            build = partial(method.optimizer, build=build)
        return build(self.model)

    def after_step(self, optimizer: Optimizer, step: int | None = None) -> None:
        """To be called after each ``optimizer.step()``, with the steps that were made, counted here when None."""
        self.steps = self.steps + 1 if step is None else step
        for method in self.methods:
            method.after_step(self.model, optimizer, self.steps)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Around a forward pass by another of the model's functions than ``forward``."""
        self._enter(self.model, None)
        try:
            yield
        finally:
            self._leave()

    def remove(self) -> None:
        """Take the methods off the model."""
        for hook in self.hooks:
            hook.remove()
        for method in reversed(self.methods):
            method.remove(self.model)
        self._recompute_as_before()
        self.hooks, self.methods = [], ()

    def _recompute_as_before(self) -> None:
        if self.recomputed:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]

    def _enter(self, model: nn.Module, _: Any) -> None:
        stack = ExitStack()
        self.open.append(stack)
        if model.training and torch.is_grad_enabled():
            if torch.compiler.is_compiling():
                _refuse_compiled()
            for method in self.methods:
                stack.enter_context(method.forward(model))

    def _leave(self, *_: Any) -> None:
        self.open.pop().close()


@torch.compiler.disable(reason="methods of memory are not for compiled training")
def _refuse_compiled() -> None:
    raise ValueError("methods of memory change what runs, which a compiled model keeps as it is: train without compile")


def lean(model: nn.Module, *methods: str | Mapping[str, Any] | Memory, **options: Any) -> Lean:
    """Let a model be trained in less memory.

    >>> memory = lean(model, "streambp", chunk_size=256)
    >>> optimizer = memory.optimizer(lambda model: torch.optim.AdamW(model.parameters()))
    >>> model(tokens, labels=tokens).backward()
    >>> optimizer.step()
    >>> memory.after_step(optimizer)

    Args:
        model: of ``create_model``, in training mode when it is called.
        methods: names of ``MEMORIES``, descriptions {"kind": name, option: value}, or methods.
        options: fields of the method, where there is one by its name.

    Raises:
        ValueError: for an unknown method or option, methods that exclude each other or one that the model has, or a
            model that cannot be trained so; the model is as it was then.
    """
    if options and (len(methods) != 1 or not isinstance(methods[0], str)):
        raise ValueError(f"options go with one method's name, got {methods} and {options}")
    described = [{"kind": method, **options} if isinstance(method, str) else method for method in methods]
    return Lean(model, [method if isinstance(method, Memory) else as_memory(method) for method in described])


def as_memory(described: Any) -> Memory:
    """The method that {"kind": ..., option: value, ...} describes.

    Raises:
        ValueError: for an unknown kind, or options that it does not have.
    """
    fields = dict(described) if isinstance(described, Mapping) else {}
    kind = fields.pop("kind", None)
    if kind not in MEMORIES:
        close = nearest(kind, MEMORIES) if isinstance(kind, str) else ""
        raise ValueError(
            f'a memory method is described as {{"kind": name, option: value, ...}}, got {described!r}{close}; methods: '
            f"{', '.join(sorted(MEMORIES))}"
        )
    try:
        return from_json(MEMORIES[kind](), kind, fields)
    except TypeError as error:
        raise ValueError(str(error)) from error


def as_memories(described: Any) -> tuple[Memory, ...]:
    """The methods that a description, a list of them or None stands for.

    Raises:
        ValueError: see ``as_memory``; methods that exclude each other.
    """
    listed = described if isinstance(described, (list, tuple)) else [] if described is None else [described]
    methods = tuple(as_memory(one) for one in listed)
    check_together(methods)
    return methods


def check_together(methods: Sequence[Memory]) -> None:
    """Raise a ValueError where two methods save the same."""
    for index, method in enumerate(methods):
        for other in methods[:index]:
            if method.saves == other.saves:
                raise ValueError(f"{other.kind} and {method.kind} both save {method.saves}: take one of them")


def _leans(model: nn.Module) -> list[Lean]:
    """Those that are on a model, the first one first."""
    owners = [getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values()]
    return [owner for owner in owners if isinstance(owner, Lean)]


def _check_beside(methods: Sequence[Memory], others: Sequence[Lean]) -> None:
    for other in [other for one in others for other in one.methods]:
        for method in methods:
            if method.saves == other.saves:
                raise ValueError(
                    f"{method.kind} and {other.kind}, which the model has, both save {method.saves}: take that one off "
                    "first, by remove() of what lean gave"
                )


def check_sharded(methods: Sequence[Memory]) -> None:
    """Raise a ValueError where a method does not work on a sharded model."""
    if wrong := [method.kind for method in methods if not method.sharded]:
        raise ValueError(f"{', '.join(wrong)} needs whole weights, and fsdp2 shards them: take ddp, or checkpointing")
