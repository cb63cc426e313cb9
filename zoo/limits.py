"""What a configuration in a file may ask for, judged by the weights beside it: refused before it is built."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

REPEATED = ("depth", "num_layers", "num_recursions", "num_features")  # in names of fields: how often a part is built
LONGEST = 1000  # repetitions, and parameters, that need no tensors beside them
ROOM = 1 << 20  # numbers that any field may ask for, for windows and lengths that no tensor shows
MANY = 16  # times the tensors of a checkpoint: a model of more parameters is not built to its end
LARGE, BYTES = 64, 1 << 28  # times the bytes of a checkpoint, and bytes besides, that a model may take


def check_sizes(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError where a field of a configuration asks for far more than the tensors of a checkpoint hold."""
    numbers = sum(tensor.numel() for tensor in tensors.values())
    for field, value in fields.items():
        repeated = any(word in field for word in REPEATED)
        count = sum(_integers(value)) if repeated else max(_integers(value), default=0)
        if repeated and count > max(len(tensors), LONGEST):
            raise ValueError(f"{field} is {_short(value)}, the checkpoint holds only {len(tensors)} tensors")
        if count > max(numbers, ROOM):
            raise ValueError(
                f"{field} is {_short(value)}, which asks for {_short(4 * count)} bytes or more: no model can be built "
                f"of it, the checkpoint holds {numbers:,} numbers"
            )


def check_bytes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError where a model, as built without memory, would take far more than a checkpoint's tensors."""
    held = sum(tensor.nbytes for tensor in tensors.values())
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size > LARGE * held + BYTES:
        raise ValueError(
            f"the configuration describes a model of {size:,} bytes, the checkpoint holds {held:,}: it is of another "
            "model"
        )


@contextmanager
def few_parameters(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise a ValueError as soon as a model built in this block has many more parameters than a checkpoint tensors."""
    built = size = 0

    def count(parameter: nn.Parameter) -> None:
        nonlocal built, size
        built, size = built + 1, size + parameter.nbytes
        if built > max(MANY * len(tensors), LONGEST):
            raise ValueError(
                f"the configuration describes more than {built} parameters and {size:,} bytes, the checkpoint holds "
                f"only {len(tensors)} tensors"
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


def _short(value: Any) -> str:
    if isinstance(value, int) and value > 10**15:
        return f"about 10^{value.bit_length() * 0.30103:.0f}"
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
