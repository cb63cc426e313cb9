"""Which implementation computes an operation: one choice for a call, a block of code or a whole program.

An operation lists its implementations in order of preference. ``"auto"`` takes the first that can run on the
device of the input; a name takes exactly that one, or raises an error that lists what can run here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from threading import Lock

import torch
from torch import Tensor

from zoo.kernels.stand_in import on_cpu

ENVIRONMENT_VARIABLE = "ZOO_IMPLEMENTATION"
# asked once: torch 2.11 compiles no call of is_autocast_available
AUTOCAST_DEVICES = {d for d in ("cpu", "cuda", "mps", "xpu", "hpu") if torch.amp.is_autocast_available(d)}

_operations: dict[str, Operation] = {}
_chosen: tuple[dict[str, str], ...] = ()  # of the open blocks, innermost last; replaced, never changed, under the lock
_lock = Lock()


def as_dtype(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Floating tensors in one dtype; None, integer and boolean tensors as they are."""
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors)


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Contiguous tensors, the floating ones of one dtype."""
    return tuple(t if t is None else t.contiguous() for t in as_dtype(dtype, *tensors))


def as_given(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors themselves, for kernels that read any floating dtype and any strides and compute in ``dtype``."""
    return tensors


def full_precision(device: torch.device) -> AbstractContextManager:
    """A block without autocast, which would round the float32 factors of an operation's products."""
    kind = device.type
    on = kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


def _without_autocast(function: Callable) -> Callable:
    @wraps(function)
    def call(*arguments):
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        with full_precision(device):
            return function(*arguments)

    return call


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    ``forward`` and ``backward`` are plain functions over tensors that have gone through ``prepare(dtype, *tensors)``:
    by default contiguous and of one floating dtype (float32 or float64); they run without autocast. Without a
    ``backward``, autograd differentiates ``forward``, run again. ``obstacle(device)`` says why it cannot run on that
    device, or returns None when it can; ``automatic(device)`` whether "auto" may take it there, or only its name.
    """

    name: str
    forward: Callable
    backward: Callable | None = None
    obstacle: Callable[[torch.device], str | None] = lambda device: None
    automatic: Callable[[torch.device], bool] = lambda device: True
    prepare: Callable[..., tuple[Tensor | None, ...]] = cast

    def __post_init__(self):
        object.__setattr__(self, "forward", _without_autocast(self.forward))
        if self.backward is not None:
            object.__setattr__(self, "backward", _without_autocast(self.backward))


class Operation:
    """The implementations of one operation, in order of preference.

    Raises:
        ValueError: for a second operation of the same name.
    """

    def __init__(self, name: str, *implementations: Implementation):
        if name in _operations:
            raise ValueError(f"operation {name!r} is already registered")
        self.name = name
        self.implementations = {item.name: item for item in implementations}
        _operations[name] = self

    def available(self, device: torch.device) -> list[str]:
        """Names of the implementations that can run on ``device``, the automatic choice first."""
        able = [item for item in self.implementations.values() if item.obstacle(device) is None]
        return [item.name for item in sorted(able, key=lambda item: not item.automatic(device))]

    def choice(self, name: str) -> str:
        """``name`` itself, or for "auto" what the block or the program chooses: still "auto" where neither does."""
        return _program_choice(self.name) if name == "auto" else name

    def resolve(self, name: str | Implementation, device: torch.device) -> Implementation:
        """The implementation ``name`` stands for on ``device``; one itself, wherever it runs.

        Raises:
            ValueError: when no implementation has that name.
            RuntimeError: when the named implementation cannot run on ``device``.
        """
        if isinstance(name, Implementation):
            return name
        name = self.choice(name)
        if name == "auto":
            every = self.implementations.values()
            if first := next((i for i in every if i.automatic(device) and i.obstacle(device) is None), None):
                return first
            name = self.available(device)[0]
        if name not in self.implementations:
            raise ValueError(
                f"{self.name} has no implementation {name!r}; choose 'auto' or one of {list(self.implementations)}"
            )
        chosen = self.implementations[name]
        if obstacle := chosen.obstacle(device):
            raise RuntimeError(
                f"{self.name}: implementation {name!r} cannot run on {device.type}: {obstacle}; "
                f"these can: {self.available(device)}"
            )
        return chosen

    def check(self, impl: str, others: dict[str, Tensor | None] | None = None, **floating: Tensor | None) -> str:
        """Raise what a call's tensors or its ``impl`` cannot be, whichever way the result is then computed.

        Returns:
            ``choice(impl)``; ``impl`` itself in a compiled program, where the choice is made when it runs.

        Raises:
            ValueError: for a tensor of ``floating`` that is not of a real floating dtype, tensors on different devices,
                or an ``impl`` that is unknown.
            RuntimeError: for an ``impl`` that cannot run on the device of the tensors.
        """
        check_floating(self.name, **floating)
        device = check_device(self.name, **(floating | others if others else floating))
        if torch.compiler.is_compiling():
            return impl
        if (impl := self.choice(impl)) != "auto":
            self.resolve(impl, torch.device("cpu") if device.type == "meta" else device)
        return impl

    def direct(self, impl: str, rows: int, most: int, *tensors: Tensor | None) -> Implementation | None:
        """The "native" implementation for a step of decoding, called without an operator; None elsewhere.

        Args:
            impl: ``choice(impl)``: only "auto" leaves the choice.
            rows: of the product; 1 to ``most`` are few, with more another implementation takes less time.
            tensors: see ``is_plain_step``.
        """
        chosen = self.implementations["native"]
        if not is_plain_step(impl, *tensors) or not 1 <= rows <= most:  # of an exported program, rows are open
            return None
        return chosen if chosen.obstacle(torch.device("cpu")) is None else None

    def plain(self, name: str, device: torch.device) -> Implementation | None:
        """The implementation ``name`` stands for, where autograd itself differentiates it, as often as wanted."""
        chosen = self.resolve(name, device)
        return chosen if chosen.backward is None else None


def under_transforms() -> bool:
    """Whether one of torch.func's transforms is at work."""
    return torch._C._are_functorch_transforms_active()


def is_plain_step(impl: str, *tensors: Tensor | None) -> bool:
    """Whether a call on the CPU needs no operator: of float32 and narrower, chosen automatically, and neither recorded
    by autograd, transformed, traced nor compiled. So one step of decoding may go straight to a C function."""
    given = [t for t in tensors if t is not None]
    return (
        impl == "auto"
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
        and all(on_cpu(t.device) and type(t) in (Tensor, torch.nn.Parameter) for t in given)
        and not any(t.dtype == torch.float64 for t in given)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not under_transforms()
    )


def available_implementations(operation: str, device: str | torch.device = "cpu") -> list[str]:
    """Names of the implementations of ``operation`` that can run on ``device``, the automatic choice first."""
    return find_operation(operation).available(torch.device(device))


def find_operation(name: str) -> Operation:
    """The operation of that name.

    Raises:
        ValueError: for an unknown one.
    """
    if name not in _operations:
        raise ValueError(f"unknown operation {name!r}; known: {sorted(_operations)}")
    return _operations[name]


@contextmanager
def implementation(*name: str, **by_operation: str) -> Iterator[None]:
    """Choose the implementation for every call inside the block, in all threads.

    ``implementation("reference")`` chooses for every operation, ``implementation(ssd="chunked")`` for one. The
    environment variable ``ZOO_IMPLEMENTATION`` does the same for a program: ``reference`` or ``ssd=chunked,...``.
    An ``impl`` argument other than ``"auto"`` wins over both, a block over those that were open when it began.
    """
    global _chosen
    unknown = set(by_operation) - set(_operations)
    if len(name) > 1 or unknown:
        raise ValueError(f"give one name, or name=... for the operations {sorted(_operations)}, not {unknown or name}")
    choice = dict(by_operation) | ({"*": name[0]} if name else {})
    with _lock:
        _chosen = (*_chosen, choice)
    try:
        yield
    finally:
        with _lock:
            _chosen = tuple(other for other in _chosen if other is not choice)


def is_automatic() -> bool:
    """Whether no block and no program chooses an implementation of anything."""
    return not _chosen and not os.environ.get(ENVIRONMENT_VARIABLE)


def _program_choice(operation: str) -> str:
    for choice in reversed(_chosen):
        if found := choice.get(operation, choice.get("*")):
            return found
    setting = os.environ.get(ENVIRONMENT_VARIABLE)
    choice = _parsed(setting) if setting else {}
    return choice.get(operation, choice.get("*", "auto"))


@cache
def _parsed(setting: str) -> dict[str, str]:
    """Of ``ssd=chunked,reference``: {"ssd": "chunked", "*": "reference"}."""
    choice = {}
    for item in filter(None, map(str.strip, setting.split(","))):
        first, equals, second = (part.strip() for part in item.partition("="))
        operation, name = (first, second) if equals else ("*", first)
        if operation not in ("*", *_operations) or not name:
            raise ValueError(
                f"{ENVIRONMENT_VARIABLE} must be a name, or operation=name for the operations {sorted(_operations)}, "
                f"separated by commas, got {item!r}"
            )
        choice[operation] = name
    return choice


def compute_dtype(*given: Tensor | torch.dtype | None) -> torch.dtype:
    """The dtype to accumulate in: float64 when any of these tensors and dtypes is float64, else float32."""
    dtypes = [g if isinstance(g, torch.dtype) else g.dtype for g in given if g is not None]
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_shape(operation: str, name: str, tensor: Tensor | None, layout: str, *sizes: int | None) -> None:
    """Raise a ValueError unless ``tensor`` is None or has ``sizes`` (None: any size) in ``layout`` ("(B, T, D)")."""
    if tensor is None or tensor.shape == sizes:
        return
    fits = tensor.dim() == len(sizes) and all(
        want is None or have == want for have, want in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        wanted = tuple("any" if size is None else size for size in sizes)
        raise ValueError(f"{operation}: {name} must have shape {layout} = {wanted}, got {tuple(tensor.shape)}")


class Sizes:
    """The sizes of an operation's tensors by the letters of their layouts: one size a letter, set by the first tensor
    that has it. A digit in a layout is that size.

    Args:
        operation: name for the errors.
    """

    def __init__(self, operation: str):
        self.operation = operation
        self._of: dict[str, int] = {digit: int(digit) for digit in "123456789"}

    def __getitem__(self, letter: str) -> int:
        return self._of[letter]

    def check(self, layout: str, **tensors: Tensor | None) -> None:
        """Raise a ValueError unless each tensor is None or lies in ``layout``, a letter a dimension ("BTHK")."""
        for name, tensor in tensors.items():
            if tensor is not None:
                wanted = tuple(self._of.get(letter) for letter in layout)
                if tensor.shape != wanted:
                    named = f"({', '.join(layout)}{',' * (len(layout) == 1)})"
                    check_shape(self.operation, name, tensor, named, *wanted)
                    self._of.update(zip(layout, tensor.shape, strict=True))

    def check_chunks(self, chunk_size: int) -> None:
        """Raise a ValueError unless the length T and the steps of a chunk are at least 1."""
        if self["T"] == 0 or chunk_size < 1:
            raise ValueError(
                f"{self.operation}: T and chunk_size must be at least 1, got T {self['T']}, chunk_size {chunk_size}"
            )


def check_floating(operation: str, **tensors: Tensor | None) -> None:
    """Raise a ValueError for a tensor that is not of a real floating dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{operation}: {name} must be a floating-point tensor, got {tensor.dtype}")


def check_device(operation: str, **tensors: Tensor | None) -> torch.device:
    """The device that all these tensors are on; a ValueError where they are on several."""
    devices = {tensor.device for tensor in tensors.values() if tensor is not None}
    if len(devices) > 1:
        where = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items() if tensor is not None)
        raise ValueError(f"{operation}: all tensors must be on one device, got {where}")
    return devices.pop()


def initial(state: Tensor | None, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    """The state that a recurrence begins with: the given one, or zeros of ``shape`` on the device of ``like``."""
    return like.new_zeros(shape, dtype=dtype) if state is None else state.to(dtype)


def sequence_starts(seq_idx: Tensor | None) -> Tensor | None:
    """Boolean (B, T): True where a token begins another sequence than the token before it; never at t = 0."""
    if seq_idx is None:
        return None
    return torch.nn.functional.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
