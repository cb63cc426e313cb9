"""What a configuration in a file may ask for, judged by the weights beside it: refused before it is built."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

REPEATED = ("depth", "num_layers", "num_recursions")  # in the names of fields that say how often something is built
LONGEST = 1000  # repetitions, and parameters, that need no tensors beside them
ROOM = 1 << 20  # numbers that any field may ask for, for windows and lengths that no tensor shows
MANY = 16  # times the tensors of a checkpoint: a model of more parameters is not built to its end


def check_sizes(config: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise a ValueError where a field asks for far more than the tensors of a checkpoint hold."""
    numbers = sum(tensor.numel() for tensor in tensors.values())
    for field, value in vars(config).items() if dataclasses.is_dataclass(config) else ():
        repeated = any(word in field for word in REPEATED)
        count = _sum(value) if repeated else max(_integers(value), default=0)
        if repeated and count > max(len(tensors), LONGEST):
            raise ValueError(
                f"{source} does not fit the model; nothing was loaded\n  {field} is {_short(value)}, the checkpoint "
                f"holds only {len(tensors)} tensors"
            )
        if count > max(numbers, ROOM):
            raise ValueError(
                f"{source}: no model can be built: {field} is {_short(value)}, which asks for at least "
                f"{_short(4 * count)} bytes; the checkpoint holds {numbers:,} numbers"
            )


@contextmanager
def few_parameters(tensors: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Raise a ValueError as soon as a model built in this block has many more parameters than a checkpoint tensors."""
    built = size = 0

    def count(parameter: nn.Parameter) -> None:
        nonlocal built, size
        built, size = built + 1, size + parameter.nbytes
        if built > max(MANY * len(tensors), LONGEST):
            raise ValueError(
                f"{source} does not fit the model; nothing was loaded\n  the configuration describes a model of more "
                f"than {built} parameters and {size:,} bytes, the checkpoint holds only {len(tensors)} tensors"
            )

    with each_parameter(count):
        yield


@contextmanager
def each_parameter(act: Callable[[nn.Parameter], nn.Parameter | None]) -> Iterator[None]:
    """Every parameter that this thread registers in this block goes through ``act``, which may return another."""
    builder = threading.get_ident()

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None or threading.get_ident() != builder else act(parameter)

    handle = register_module_parameter_registration_hook(hook)  # pyright: ignore[reportArgumentType] (it may return)
    try:
        yield
    finally:
        handle.remove()


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _integers(vars(value))
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _integers(item)


def _sum(value: Any) -> int:
    return sum(_integers(value))


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, int) and value > 10**15 else str(value)
    return text if len(text) < 200 else f"{text[:200]}..."
